package main

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// roff returns a text for a manual page. Every hyphen is one to copy to a command line.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...", "`", "").Replace(strings.TrimSpace(text))
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}

// entry is one of a list: a term in bold and its explanation.
func entry(term, text string) string { return ".TP\n.B " + roff(term) + "\n" + roff(text) + "\n" }

// paragraphs returns prose with blank lines as paragraphs.
func paragraphs(text string) string {
	return strings.ReplaceAll(roff(text), "\n\n", "\n.PP\n") + "\n"
}

// manualHead is the page up to the commands. It has no date, so that it changes only with the
// command line.
const manualHead = `.\" Generated from the command line by
.\" 'go test ./cmd/nar-herder -run TestOptionsDocument -update': don't edit this page.
.TH NAR\-HERDER 1 "" "nar\-herder ` + release + `"
.SH NAME
nar\-herder \- substitute server for GNU Guix
.SH SYNOPSIS
.B nar\-herder
.I command
.RI [ options ]
.RI [ arguments ]
.SH DESCRIPTION
.B nar\-herder
keeps signed narinfos in an SQLite index and nars in a directory or an S3 bucket, and serves both to clients over HTTP.
.PP
Most options can also be set by an environment variable or in a TOML file. The first of these that sets an option counts: the command line, the variable, the file, the default.
.SH COMMON OPTIONS
`

// manualTail is the page below the units.
const manualTail = `.SH ENVIRONMENT
.TP
.B NAR_HERDER_\fIOPTION\fR
The value of an option: NAR_HERDER_STORAGE_LIMIT is \-\-storage\-limit. A semicolon separates the values of a list. Empty variables count as unset.
.TP
.B NAR_HERDER_CONFIG
A TOML file with names of options as keys, such as storage\-limit = "9T".
.TP
.BR LISTEN_FDS ", " NOTIFY_SOCKET
Sockets from systemd, and the readiness of the server.
.SH FILES
.TP
.I /var/lib/nar\-herder/nar_herder.db
The index.
.TP
.I /var/lib/nar\-herder/nar_herder_dump.db
The dump of the index for other instances.
.TP
.I /var/cache/nar\-herder/nar/
Nars in further compressions.
.SH EXAMPLES
Import what guix publish has cached, and serve it:
.PP
.EX
nar\-herder import \-\-storage=/srv/nars \-\-keep /srv/published
nar\-herder run\-server \-\-storage=/srv/nars \-\-ttl=30d \-\-negative\-ttl=1h
.EE
.PP
Follow another instance:
.PP
.EX
nar\-herder run\-server \-\-storage=/srv/nars \-\-mirror=https://substitutes.example.org
.EE
.SH SEE ALSO
.BR guix (1),
.BR systemd (1)
`

// exitStatus is a row of the table of exit statuses in docs/options.md.
var exitStatus = regexp.MustCompile(`(?m)^\| ([0-9]+) \| (.*) \|$`)

// manual returns the manual page.
func manual(model *kong.Application) string {
	var b strings.Builder
	b.WriteString(manualHead)
	for _, option := range model.Flags {
		b.WriteString(entry(optionTerm(option), option.Help))
	}
	b.WriteString(".SH COMMANDS\n")
	var all units
	for _, command := range model.Children {
		b.WriteString(".SS " + roff(command.Name))
		for _, argument := range command.Positional {
			b.WriteString(" " + roff(argument.Summary()))
		}
		b.WriteString("\n" + paragraphs(command.Help))
		if command.Detail != "" && command.Detail != command.Help {
			b.WriteString(".PP\n" + paragraphs(command.Detail))
		}
		for _, argument := range command.Positional {
			b.WriteString(entry(argument.Summary(), argument.Help))
		}
		for i, option := range command.Flags {
			if i == 0 || groupOrder(option) != groupOrder(command.Flags[i-1]) {
				b.WriteString(".PP\n.I " + roff(option.Group.Title) + "\n")
			}
			all |= unitsOf(option.Target.Type())
			b.WriteString(entry(optionTerm(option), option.Help))
		}
		page := helpPages[command.Name]
		b.WriteString(".PP\n.I Examples:\n.PP\n.EX\n")
		for _, example := range page.examples {
			b.WriteString("nar\\-herder " + roff(example) + "\n")
		}
		b.WriteString(".EE\n.PP\n.I See also:\n" + roff(page.seeAlso()) + "\n")
	}
	b.WriteString(".SH UNITS\n.EX\n")
	var text strings.Builder
	_ = printUnits(&text, all) // into memory
	b.WriteString(roff(strings.ReplaceAll(strings.TrimPrefix(text.String(), "\nUnits:"), "\n  ", "\n")) + "\n.EE\n.SH EXIT STATUS\n")
	for _, row := range exitStatus.FindAllStringSubmatch(optionsHead, -1) {
		b.WriteString(entry(row[1], row[2]))
	}
	b.WriteString(manualTail)
	return b.String()
}

// TestManual checks the manual page with mandoc, and that it shows.
func TestManual(t *testing.T) {
	t.Parallel()
	mandoc := required(t, "mandoc")
	page := filepath.Join(root, "contrib/man/nar-herder.1")
	lint, _ := exec.Command(mandoc, "-T", "lint", "-W", "warning", page).CombinedOutput() // it fails for any warning
	for line := range strings.Lines(string(lint)) {
		if !strings.Contains(line, "missing date") { // see manualHead
			t.Error(line)
		}
	}
	out, err := exec.Command(mandoc, "-T", "ascii", "-O", "width=100", page).Output()
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(".\b").ReplaceAllString(string(out), "") // bold and underlined
	for _, want := range []string{"run-server", "--storage-limit=BYTES", "Remove nars to keep the storage below this size", "durations    s, min, h, d", "Client caching:", "nar-herder stats --json", "See also: nar-herder list", "EXIT STATUS", "64 "} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not show %q", want)
		}
	}
}
