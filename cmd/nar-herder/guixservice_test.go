package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// shepherdService is what contrib/guix makes of a record.
type shepherdService struct {
	program     string
	arguments   []string
	keywords    map[string]string // of make-forkexec-constructor
	requirement string
	account     string // group and user
	activation  string
	err         string
}

// evaluate loads contrib/guix with Guile, and with the stubs of testdata/guix in place of
// Guix's modules, and returns what its service starts for each record.
func evaluate(t *testing.T, records ...string) (services []shepherdService) {
	t.Helper()
	guile := exec.Command(required(t, "guile"), "--no-auto-compile", "-L", "testdata/guix", "-L", filepath.Join(root, "contrib/guix"), "testdata/guix/services.scm")
	guile.Stdin = strings.NewReader(strings.Join(records, "\n"))
	guile.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	var stderr bytes.Buffer
	guile.Stderr = &stderr
	out, err := guile.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%v: %s%s", err, out, stderr.String())
	}
	service := shepherdService{keywords: make(map[string]string)}
	for line := range strings.Lines(string(out)) {
		kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		var values [2]string
		for i := 0; rest != ""; i++ {
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
			values[i] = must(strconv.Unquote(quoted))
			rest = strings.TrimSpace(rest[len(quoted):])
		}
		switch kind {
		case "argument":
			if service.program == "" {
				service.program = values[0]
			} else {
				service.arguments = append(service.arguments, values[0])
			}
		case "keyword":
			service.keywords[values[0]] = values[1]
		case "requirement":
			service.requirement = values[0]
		case "account":
			service.account = values[0] + " " + values[1]
		case "activation":
			service.activation = values[0]
		case "error":
			service.err = values[0]
		case "end":
			services = append(services, service)
			service = shepherdService{keywords: make(map[string]string)}
		}
	}
	if len(services) != len(records) {
		t.Fatalf("%d services of %d records", len(services), len(records))
	}
	return services
}

// TestGuixRecord: the service of contrib/guix starts the server with the arguments of Guix's
// own service of either year, which TestGuixService runs.
func TestGuixRecord(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	var records []string
	var want []*guixService
	for _, year := range []int{2025, 2026} {
		for name, set := range guixRecords("https://mirror.example") {
			if name == "example" {
				continue // it reads keys
			}
			g := newGuixService(p, year)
			set(g, p)
			want = append(want, g)
			records = append(records, g.scheme())
		}
	}
	for i, got := range evaluate(t, records...) {
		g := want[i]
		if !slices.Equal(got.arguments, g.arguments()) || got.program != "/gnu/store/nar-herder-go/bin/nar-herder" {
			t.Errorf("%s\nstarts %s %q\nwant   %q%s", records[i], got.program, got.arguments, g.arguments(), got.err)
		}
		environment := append([]string{"SSL_CERT_DIR=/etc/ssl/certs"}, g.extraEnvironmentVariables...)
		for keyword, want := range map[string]string{
			"user": "nar-herder", "group": "nar-herder", "pid-file": g.pidFile, "directory": "/var/lib/nar-herder",
			"log-file": "/var/log/nar-herder/server.log", "environment-variables": "(" + strings.Join(environment, " ") + ")",
		} {
			if got.keywords[keyword] != want {
				t.Errorf("#:%s %q, want %q", keyword, got.keywords[keyword], want)
			}
		}
		if got.account != "nar-herder nar-herder" || got.requirement != "(user-processes networking)" {
			t.Errorf("account %q, requirement %q", got.account, got.requirement)
		}
	}
}

// TestGuixRecordForms: the forms in which fields can be written, and slips.
func TestGuixRecordForms(t *testing.T) {
	t.Parallel()
	const head = `(nar-herder-configuration (storage "/srv/nars") `
	wanted := map[string]string{
		head + `(storage-nar-removal-criteria '(("stored-on" . "https://a.example") "unused-for=12mo")))`:             "--storage-nar-removal-criteria=stored-on=https://a.example --storage-nar-removal-criteria=unused-for=12mo",
		head + `(acl (list (local-file "acl"))))`:                                                                     "--acl=/gnu/store/acl",
		head + `(storage-limit 500000000) (ttl 'none))`:                                                               "--storage-limit=500000000 --ttl=none",
		head + `(advertise #t) (storage-read-only #t) (x-accel-redirect #f))`:                                         "--storage-read-only --advertise",
		head + `(upstream '("https://a.example" "file:///srv/b")))`:                                                   "--upstream=https://a.example --upstream=file:///srv/b",
		`(nar-herder-configuration (upstream '("https://a.example")) (package "other"))`:                              "--upstream=https://a.example",
		`(nar-herder-configuration (inherit ` + head + `(ttl "30d"))) (ttl "20d"))`:                                   "--storage=/srv/nars --ttl=20d",
		head + `(cached-compression-min-uses 7))`:                                                                     "--cached-compression-min-uses=7",
		head + `(cached-compressions (list (nar-herder-cached-compression-configuration (type 'zstd) (workers 9)))))`: "--enable-cached-compression=zstd:9",
		head + `(shepherd-requirement '(file-system-/srv/nars)))`:                                                     "(user-processes networking file-system-/srv/nars)",
		head + `(user "herder") (group "guix-nars"))`:                                                                 "guix-nars herder",
		head + `(database "/srv/index/nar_herder.db"))`:                                                               "/srv/index",
		`(nar-herder-configuration)`:                                                                                  "set mirror, storage or upstream",
		head + `(storage-limt "9T"))`:                                                                                 "no such field",
	}
	records := slices.Collect(maps.Keys(wanted))
	for i, got := range evaluate(t, records...) {
		record, want := records[i], wanted[records[i]]
		all := strings.Join(append(got.arguments, got.requirement, got.account, got.activation, got.err), " ")
		for part := range strings.SplitSeq(want, " --") {
			if !strings.Contains(all, part) {
				t.Errorf("%s\ngives %s\nwant  %s", record, all, want)
			}
		}
		if strings.Contains(all, "x-accel-redirect") {
			t.Errorf("%s gives %s", record, all)
		}
		// Nothing is created where a file system of nars may not be mounted.
		if strings.Contains(got.activation, "/srv/nars") {
			t.Error(got.activation)
		}
	}
}

// TestGuixRecordOptions: the record has a field for each option of run-server, and the program
// accepts what the service makes of all of them.
func TestGuixRecordOptions(t *testing.T) {
	t.Parallel()
	model := commandModel(t)
	values := valueOfEachOption()
	record := "(nar-herder-configuration"
	compression := ` (cached-compressions (list (nar-herder-cached-compression-configuration (type 'zstd) (level 1)`
	var want []string
	for _, option := range model.Children[0].Flags {
		value, ok := values[option.Name]
		if !ok {
			t.Errorf("no value for --%s", option.Name)
		}
		argument := "--" + option.Name + "=" + value
		kind, ofKind, _ := strings.Cut(value, "=")
		switch {
		case option.IsBool() && value == "true":
			record += " (" + option.Name + " #t)"
			argument = "--" + option.Name
		case option.Name == "enable-cached-compression":
		case isCompressionOption(option) && kind == "zstd":
			compression += fmt.Sprintf(" (%s %q)", strings.TrimPrefix(option.Name, "cached-compression-"), ofKind)
		case option.IsSlice():
			record += fmt.Sprintf(" (%s '(%q))", option.Name, value)
		default:
			record += fmt.Sprintf(" (%s %q)", option.Name, value)
		}
		want = append(want, argument)
	}
	got := evaluate(t, record+compression+"))))")[0]
	if got.err != "" {
		t.Fatal(got.err)
	}
	slices.Sort(want)
	if sorted := slices.Sorted(slices.Values(got.arguments[1:])); !slices.Equal(sorted, want) {
		t.Errorf("arguments %q\nwant      %q", sorted, want)
	}
	for name, set := range shownConfig(t, nil, got.arguments[1:]...) {
		if !strings.HasPrefix(set[1], "command line") {
			t.Errorf("%s has no field: it is %s", name, set)
		}
	}
	shown := slices.Collect(maps.Keys(optionsOf(reflect.TypeFor[serverCommand]())))
	if len(shown) != len(model.Children[0].Flags) {
		t.Errorf("%d options of %d", len(model.Children[0].Flags), len(shown))
	}
}

// TestGuixExample: the program accepts what the service makes of the example of docs/guix.md.
func TestGuixExample(t *testing.T) {
	t.Parallel()
	_, record, ok := strings.Cut(read(t, root, "docs/guix.md"), "(service nar-herder-service-type\n")
	if !ok {
		t.Fatal("no example")
	}
	depth := 0
	end := strings.IndexFunc(record, func(r rune) bool {
		switch r {
		case '(':
			depth++
		case ')':
			depth--
		}
		return r == ')' && depth == 0
	})
	got := evaluate(t, record[:end+1])[0]
	if got.err != "" {
		t.Fatal(got.err)
	}
	shown := shownConfig(t, nil, got.arguments[1:]...)
	for option, want := range map[string]string{
		"storage-limit": `"9T"`, "acl": `["/etc/guix/acl"]`, "signing-key": `["/gnu/store/signing-key.pub"]`, "enable-cached-compression": `["zstd:19"]`,
		"cached-compression-directory-max-size": `["zstd=100G"]`, "log-level": `"INFO"`,
	} {
		if shown[option][0] != want {
			t.Errorf("%s = %s, want %s", option, shown[option][0], want)
		}
	}
}

// TestGuixPackage: the package has the version of the program.
func TestGuixPackage(t *testing.T) {
	t.Parallel()
	if text := contrib(t, "guix/nar-herder-go/package.scm"); !strings.Contains(text, `(version "`+release+`")`) {
		t.Errorf("the package does not have version %s", release)
	}
}
