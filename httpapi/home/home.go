// Package home makes the page for browsers.
package home

import (
	"bytes"
	_ "embed"
	"html/template"
)

//go:embed home.html
var text string

var page = template.Must(template.New("home").Parse(text))

// Content is what the page shows.
type Content struct {
	Items   int64
	Keys    []string // names of the public keys
	Version string
}

// Page makes the page.
func Page(content Content) ([]byte, error) {
	var text bytes.Buffer
	err := page.Execute(&text, content)
	return text.Bytes(), err
}
