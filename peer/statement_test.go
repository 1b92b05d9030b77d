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
		names := make([]string, count)
		for n := range names {
			names[n] = fmt.Sprintf(`"A%d":1`, n)
		}
		return "{" + strings.Join(names, ",") + "}"
	}
	for text, want := range map[string]Statement{
		`{}`: {}, `null`: nil, `{"b-_9":1,"A":7,"?":2}`: {"b-_9": 1, "A": 7, Unknown: 2},
	} {
		var got struct {
			S Statement `json:"s,omitzero"`
		}
		if err := json.Unmarshal([]byte(`{"s":`+text+`}`), &got); err != nil || !reflect.DeepEqual(got.S, want) {
			t.Errorf("%s: %+v, %v", text, got.S, err)
		}
		if written, err := json.Marshal(got); err != nil || strings.Contains(string(written), "s") != (want != nil) {
			t.Errorf("%s: %s, %v", text, written, err)
		}
	}
	for _, text := range []string{
		`[]`, `"A"`, `{"A":null}`, `{"A":{}}`, `{"A":{"on":[]}}`, `{"A":"1"}`, `{"A":0}`, `{"A":-1}`, `{"A":1.5}`, `{"A":1e30}`, `{"A":257}`, `{"A":9223372036854775807}`, `{"":1}`, `{"a b":1}`,
		`{"\n":1}`, `{"??":1}`, `{"` + strings.Repeat("x", maxName+1) + `":1}`, many(MaxStatement + 1),
	} {
		var got Statement
		if err := json.Unmarshal([]byte(text), &got); err == nil || got != nil {
			t.Errorf("%.80s: %+v, %v", text, got, err)
		}
	}
	var most Statement
	if err := json.Unmarshal([]byte(many(MaxStatement)), &most); err != nil {
		t.Errorf("%v", err)
	}
}
