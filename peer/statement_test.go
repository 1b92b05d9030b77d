package peer

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestStatement(t *testing.T) {
	t.Parallel()
	many := func(count int) string {
		return `{"A":{"on":["` + strings.Join(strings.Split(strings.Repeat("B", count), ""), `","`) + `"]}}`
	}
	for text, want := range map[string]Statement{
		`{}`: {}, `null`: nil,
		`{"A":{"on":[]}}`: {"A": {On: []string{}}},
		`{"A":{"on":["b-_9"],"age_ms":7,"more":{}},"b-_9":{"on":[],"age_ms":0}}`: {"A": {On: []string{"b-_9"}, Age: 7}, "b-_9": {On: []string{}}},
	} {
		var got struct {
			S Statement `json:"s"`
		}
		if err := json.Unmarshal([]byte(`{"s":`+text+`}`), &got); err != nil || !reflect.DeepEqual(got.S, want) {
			t.Errorf("%s: %+v, %v", text, got.S, err)
		}
	}
	for _, text := range []string{
		`[]`, `"A"`, `{"A":null}`, `{"A":{}}`, `{"A":{"on":null}}`, `{"A":{"on":"B"}}`, `{"A":{"on":[""]}}`, `{"":{"on":[]}}`, `{"A":{"on":["a b"]}}`,
		`{"A":{"on":["\n"]}}`, `{"A":{"on":[],"age_ms":-1}}`, `{"A":{"on":[],"age_ms":1e30}}`, `{"` + strings.Repeat("x", maxName+1) + `":{"on":[]}}`, many(MaxStatement),
	} {
		var got Statement
		if err := json.Unmarshal([]byte(text), &got); err == nil || got != nil {
			t.Errorf("%.80s: %+v, %v", text, got, err)
		}
	}
	var most Statement
	if err := json.Unmarshal([]byte(many(MaxStatement-1)), &most); err != nil || most.Header() == "" {
		t.Errorf("%v", err)
	}
	long := make(Statement)
	for n := range 100 {
		long[fmt.Sprint(strings.Repeat("x", 30), n)] = Reliance{On: []string{}}
	}
	if long.Header() != "" || (Statement)(nil).Header() != "" {
		t.Error("a header that is too long, or empty")
	}
}
