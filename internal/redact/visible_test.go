package redact

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestVisible(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                          "",
		"nar/lzip/x-grüße y\\\"":    "nar/lzip/x-grüße y\\\"",
		"a\nb\tc\r\x1b[2J":          `a\nb\tc\r\x1b[2J`,
		"\x7f\u009b2J\u202e\u2028":  `\x7f\u009b2J\u202e\u2028`,
		"bad \xff\xc2 UTF-8 \ufffd": `bad \xff\xc2 UTF-8 �`,
	} {
		if got := Visible(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
		if again := Visible(Visible(text)); again != Visible(text) {
			t.Errorf("%q: twice it is %q", text, again)
		}
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	text := "a\nb\x1b\x7f\u009b\u202e\U000e0001 grüße"
	var b strings.Builder
	if err := json.NewEncoder(JSON{&b}).Encode(text); err != nil {
		t.Fatal(err)
	}
	if line := strings.TrimSuffix(b.String(), "\n"); Visible(line) != line {
		t.Errorf("%q", b.String())
	}
	var got string
	if err := json.Unmarshal([]byte(b.String()), &got); err != nil || got != text {
		t.Errorf("%q, %v; want %q", got, err, text)
	}
}
