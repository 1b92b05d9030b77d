package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/alecthomas/kong"
)

// guixDefaults are the defaults in the record of Guix, which its service always passes, in
// the order of its arguments. Those of "" are not passed. The other fields have no default.
var guixDefaults = [][2]string{
	{"pid-file", `"/var/run/nar-herder/pid"`}, {"port", "8734"}, {"host", `"127.0.0.1"`},
	{"control-port", "8735"}, {"control-host", `"127.0.0.1"`}, {"mirror"},
	{"database", `"/var/lib/nar-herder/nar_herder.db"`}, {"database-dump", `"/var/lib/nar-herder/nar_herder_dump.db"`},
	{"storage"}, {"storage-limit", `"none"`}, {"storage-minimum-free-space", `"none"`}, {"storage-nar-removal-criteria"},
	{"ttl"}, {"new-ttl"}, {"negative-ttl"}, {"log-level", "'DEBUG"}, {cachedCompressions},
	{"cached-compression-min-uses", "3"}, {"cached-compression-workers", "2"}, {"cached-compression-nar-source"},
}

// cachedCompressions is the field with a record for each type of cached compression.
const cachedCompressions = "cached-compressions"

// manualNames are the names of fields in the manual of Guix that differ from those in its code.
var manualNames = map[string]string{
	"cached-compression-min-uses": "min-uses", "cached-compression-workers": "workers", "cached-compression-nar-source": "nar-source",
}

const guixRecordHead = `;;; The options of 'nar-herder run-server' as a record of Guix. Generated from the command line by
;;; 'go test ./cmd/nar-herder -run TestOptionsDocument -update': don't edit this file.
(define-module (nar-herder-go configuration)
  #:use-module (guix records)
  #:use-module (nar-herder-go package)
  #:export (%options
            %cached-compression-level
            %cached-compression-options
`

// programDefault is the default of the program at the end of a help text.
var programDefault = regexp.MustCompile(` \(default: [^)]*\)`)

// isCompressionOption reports whether an option is set for a type of cached compression.
func isCompressionOption(option *kong.Flag) bool {
	return strings.HasPrefix(option.FormatPlaceHolder(), "TYPE")
}

// schemeComment returns a text as a comment.
func schemeComment(text string) string {
	return strings.ReplaceAll(strings.TrimSuffix(wrapWords(text, "  ;; ", 95), "\n"), "…", "...") + "\n"
}

// wrapWords breaks a text into lines of at most width bytes, each with the indent.
func wrapWords(text, indent string, width int) string {
	var b strings.Builder
	line := indent
	for _, word := range strings.Fields(text) {
		if len(line)+len(word) > width {
			b.WriteString(strings.TrimRight(line, " ") + "\n")
			line = indent
		}
		line += word + " "
	}
	return b.String() + strings.TrimRight(line, " ") + "\n"
}

// guixRecord returns a module with a record that has a field for each option of run-server.
func guixRecord(model *kong.Application) string {
	options := make(map[string]*kong.Flag)
	var order []string
	for _, entry := range guixDefaults {
		order = append(order, entry[0])
	}
	var compressions []*kong.Flag
	for _, option := range model.Children[0].Flags {
		options[option.Name] = option
		if isCompressionOption(option) {
			compressions = append(compressions, option)
		} else if !slices.Contains(order, option.Name) {
			order = append(order, option.Name)
		}
	}
	// A record as its exports, its fields, and the table of its options.
	type record struct{ exports, fields, table strings.Builder }
	add := func(r *record, name, field, comment, value string) {
		if comment != "" {
			r.fields.WriteString(schemeComment(comment))
		}
		accessor := name + "-" + field
		r.exports.WriteString("            " + accessor + "\n")
		if value != "" {
			value = " (default " + value + ")"
		}
		space := " "
		if len(field)+len(accessor)+len(value) > 88 {
			space = "\n   "
		}
		r.fields.WriteString("  (" + field + space + accessor + value + ")\n")
	}
	const name, compressionName = "nar-herder-configuration", "nar-herder-cached-compression-configuration"
	var all, compression record
	add(&all, name, "package", "Package with the program.", "nar-herder-go")
	add(&all, name, "user", "User and group of the server.", `"nar-herder"`)
	add(&all, name, "group", "", `"nar-herder"`)
	for _, field := range order {
		if field == cachedCompressions {
			add(&all, name, field, "List of "+compressionName+" records.", "'()")
			all.table.WriteString(fmt.Sprintf("   (list %q %s-%s)\n", field, name, field))
			continue
		}
		option, value := options[field], "#f"
		comment := option.Help
		if option.IsSlice() {
			value = "'()"
		}
		for _, entry := range guixDefaults {
			if entry[0] == field && entry[1] != "" {
				value = entry[1]
				comment = programDefault.ReplaceAllString(comment, "") // which may differ
			}
		}
		add(&all, name, field, comment, value)
		accessor := name + "-" + field
		if manual := manualNames[field]; manual != "" {
			add(&all, name, manual, "The name in the manual of Guix for "+field+".", "#f")
			accessor = fmt.Sprintf("(lambda (config)\n%11s(or (%s-%s config)\n%15s(%s config)))", "", name, manual, "", accessor)
		}
		all.table.WriteString(fmt.Sprintf("   (list %q\n         %s)\n", field, accessor))
	}
	add(&all, name, "extra-options", "List of further arguments, as strings.", "'()")
	add(&all, name, "extra-environment-variables", `List of environment variables, such as "SSL_CERT_FILE=/etc/ssl/ca.pem".`, "'()")
	add(&all, name, "shepherd-requirement", "List of further services of the Shepherd that the server needs, such as file-system-/srv/nars.", "'()")
	add(&all, name, "log-file", "File for the log of the server.", `"/var/log/nar-herder/server.log"`)

	add(&compression, compressionName, "type", "Type of the compression, such as 'zstd.", "")
	add(&compression, compressionName, "level", "Level of the compression. The manual of Guix calls the field workers.", "#f")
	add(&compression, compressionName, "workers", "", "#f")
	for _, option := range compressions {
		if field, ok := strings.CutPrefix(option.Name, "cached-compression-"); ok {
			add(&compression, compressionName, field, option.Help, "#f")
			compression.table.WriteString(fmt.Sprintf("   (list %q\n         %s-%s)\n", option.Name, compressionName, field))
		}
	}

	define := func(r *record, name string) string {
		return fmt.Sprintf("\n(define-record-type* <%s>\n  %[1]s\n  make-%[1]s\n  %[1]s?\n%s)\n", name, strings.TrimSuffix(r.fields.String(), "\n"))
	}
	var b strings.Builder
	b.WriteString(guixRecordHead)
	for _, r := range []struct {
		name string
		*record
	}{{name, &all}, {compressionName, &compression}} {
		b.WriteString("            " + r.name + "\n            " + r.name + "?\n" + r.exports.String())
	}
	text := strings.TrimSuffix(b.String(), "\n") + "))\n" + define(&all, name) + define(&compression, compressionName)
	return text + `
(define %options
  ;; Options and what returns the value of each, in the order of the arguments. An entry named
  ;; "` + cachedCompressions + `" stands for the options of all these records.
  (list
` + strings.TrimSuffix(all.table.String(), "\n") + `))

(define (%cached-compression-level compression)
  (or (` + compressionName + `-level compression)
      (` + compressionName + `-workers compression)))

(define %cached-compression-options
  (list
` + strings.TrimSuffix(compression.table.String(), "\n") + `))
`
}

// scheme returns a value of a record's field.
func scheme(value string) string {
	if _, err := strconv.Atoi(value); err == nil {
		return value
	}
	return strconv.Quote(value)
}

// schemeList returns a list of strings.
func schemeList(values []string) string {
	quoted := make([]string, len(values))
	for i, value := range values {
		quoted[i] = strconv.Quote(value)
	}
	return "'(" + strings.Join(quoted, " ") + ")"
}

// scheme returns the record as it is written for contrib/guix.
func (g *guixService) scheme() string {
	var b strings.Builder
	set := func(field, value string) {
		if value != "" {
			b.WriteString(" (" + field + " " + scheme(value) + ")")
		}
	}
	b.WriteString("(nar-herder-configuration")
	for _, field := range [][2]string{
		{"pid-file", g.pidFile}, {"port", g.port}, {"host", g.host}, {"mirror", g.mirror}, {"database", g.database}, {"database-dump", g.databaseDump},
		{"storage", g.storage}, {"storage-limit", g.storageLimit}, {"ttl", g.ttl}, {"new-ttl", g.newTTL}, {"negative-ttl", g.negativeTTL},
		{"min-uses", g.minUses}, {"workers", g.workers}, {"nar-source", g.narSource},
	} {
		set(field[0], field[1])
	}
	b.WriteString(" (log-level '" + g.logLevel + ") (storage-nar-removal-criteria " + schemeList(g.removalCriteria) + ")")
	b.WriteString(" (extra-environment-variables " + schemeList(g.extraEnvironmentVariables) + ")")
	if g.year >= 2026 {
		set("control-host", g.controlHost)
		set("control-port", g.controlPort)
		set("storage-minimum-free-space", g.minimumFreeSpace)
		b.WriteString(" (extra-options " + schemeList(g.extraOptions) + ")")
	} else {
		b.WriteString(" (control-host #f) (control-port #f) (storage-minimum-free-space #f)")
	}
	b.WriteString(" (cached-compressions (list")
	for _, c := range g.cachedCompressions {
		b.WriteString(" (nar-herder-cached-compression-configuration (type '" + c.kind + ")")
		for _, field := range [][2]string{{"level", c.level}, {"directory", c.directory}, {"directory-max-size", c.directoryMaxSize}, {"unused-removal-duration", c.unusedRemovalDuration}, {"ttl", c.ttl}, {"new-ttl", c.newTTL}} {
			set(field[0], field[1])
		}
		b.WriteString(")")
	}
	return b.String() + ")))"
}
