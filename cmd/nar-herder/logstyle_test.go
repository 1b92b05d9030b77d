package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// logAttributes are the names of the attributes of log lines: one for each notion.
var logAttributes = strings.Fields(`
	above address addresses all bytes change changes checksum client connections copies criterion database datetime
	directory dropped duration error expires failures file files free freed_from from interface interval issuer
	item items kept kind last_used limit limit_per_address minimum missing mode name names narinfos nars note option part
	path pid port quarantined reason repair result retry_in rows running server service since source stack state storage
	taken text tls to tried type until upstream uses version`)

// logCall returns the message of a call that writes a log line, and the names and values after it,
// or nil. It recognizes loggers by the names of variables.
func logCall(call *ast.CallExpr) (message ast.Expr, attributes []ast.Expr) {
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return nil, nil
	}
	receiver := method.X
	if got, ok := receiver.(*ast.CallExpr); ok {
		receiver = got.Fun
	}
	if field, ok := receiver.(*ast.SelectorExpr); ok {
		receiver = field.Sel
	}
	name, ok := receiver.(*ast.Ident)
	isLog := ok && strings.EqualFold(name.Name, "log")
	before := 0 // arguments before the message
	switch method.Sel.Name {
	case "Error", "Warn", "Info", "Debug":
		if !isLog {
			return nil, nil
		}
	case "Log":
		if before = 3; isLog { // else of a logonce.Filter
			before = 2
		}
	case "Over": // of a logonce.Filter
		before = 1
	default:
		return nil, nil
	}
	if len(call.Args) <= before {
		return nil, nil
	}
	return call.Args[before], call.Args[before+1:]
}

// gathered returns the attributes of an expression that gathers them for a call.
func gathered(node ast.Node) []ast.Expr {
	switch node := node.(type) {
	case *ast.CompositeLit:
		if list, ok := node.Type.(*ast.ArrayType); ok && isIdent(list.Elt, "any") && len(node.Elts)%2 == 0 {
			return node.Elts
		}
	case *ast.CallExpr:
		if isIdent(node.Fun, "append") && isIdent(node.Args[0], "attributes") {
			return node.Args[1:]
		}
	}
	return nil
}

func isIdent(e ast.Expr, name string) bool {
	ident, ok := e.(*ast.Ident)
	return ok && ident.Name == name
}

// TestLogStyle checks the messages and attributes of all log lines of the program.
func TestLogStyle(t *testing.T) {
	t.Parallel()
	files := token.NewFileSet()
	calls := 0
	used := make(map[string]bool)
	checkAttributes := func(attributes []ast.Expr) {
		for i := 0; i < len(attributes); i += 2 {
			at := files.Position(attributes[i].Pos())
			literal, ok := attributes[i].(*ast.BasicLit)
			if !ok {
				t.Errorf("%s: the name of this attribute is not a string", at)
				continue
			}
			name, err := strconv.Unquote(literal.Value)
			if err != nil || !slices.Contains(logAttributes, name) {
				t.Errorf("%s: attribute %s: take one of the names in this test, if there is one for it", at, literal.Value)
			}
			if used[name] = true; i+1 == len(attributes) {
				t.Errorf("%s: attribute %s has no value", at, name)
			}
		}
	}
	check := func(node ast.Node) bool {
		checkAttributes(gathered(node))
		call, ok := node.(*ast.CallExpr)
		if !ok {
			return true
		}
		message, attributes := logCall(call)
		if message == nil {
			return true
		}
		calls++
		if sum, ok := message.(*ast.BinaryExpr); ok {
			message = sum.X
		}
		if literal, ok := message.(*ast.BasicLit); ok {
			text, err := strconv.Unquote(literal.Value)
			begins := text != "" && text[0] >= 'a' && text[0] <= 'z' || strings.HasPrefix(text, "--") || strings.HasPrefix(text, "TLS ")
			if err != nil || !begins || strings.HasSuffix(text, ".") || strings.Contains(text, "\n") {
				t.Errorf("%s: a message begins in lower case and has no period at its end: %s", files.Position(call.Pos()), literal.Value)
			}
		}
		if !call.Ellipsis.IsValid() { // else they are gathered elsewhere
			checkAttributes(attributes)
		}
		return true
	}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (entry.Name() == "testdata" || strings.HasPrefix(entry.Name(), ".git")) {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, check)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if calls < 150 {
		t.Errorf("found only %d log lines", calls)
	}
	for _, name := range logAttributes {
		if !used[name] {
			t.Errorf("no line has the attribute %s", name)
		}
	}
}
