package main

import (
	_ "embed"
	"fmt"
	"regexp"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"nar-herder/storage/index"
)

type versionCommand struct{}

func (versionCommand) Run(s *streams) error {
	fmt.Fprintln(s.out, "nar-herder", builtFrom().describe())
	return nil
}

// release is the version of the next release.
const release = "0.1.0"

// version returns the release, with the commit if that is known.
func version() string { return builtFrom().version() }

// build is what this program was built from.
type build struct {
	release, commit string // the commit is "" if unknown
	time            time.Time
	modified        bool // the checkout had changes that were not committed
}

// archived is the commit and its time in a source archive: 'git archive' replaces the text.
//
//go:embed revision.txt
var archived string

// builtFrom is the build of this program.
var builtFrom = sync.OnceValue(func() build {
	info, _ := debug.ReadBuildInfo() // nil without information
	return readBuild(info, archived)
})

// pseudoVersion is the end of the version of a module without a tag: the time and the commit.
var pseudoVersion = regexp.MustCompile(`[.-]([0-9]{14})-([0-9a-f]{12})(\+dirty)?$`)

// readBuild returns what is known of a build: from a source archive, from the checkout, or from
// the version of the module, which 'go install MODULE@VERSION' sets.
func readBuild(info *debug.BuildInfo, archived string) build {
	b := build{release: release}
	if commit, seconds, ok := strings.Cut(strings.TrimSpace(archived), " "); ok && !strings.HasPrefix(commit, "$") {
		if n, err := strconv.ParseInt(seconds, 10, 64); err == nil {
			b.time = time.Unix(n, 0)
		}
		b.commit = commit
		return b
	}
	if info == nil {
		return b
	}
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			b.commit = setting.Value
		case "vcs.time":
			b.time, _ = time.Parse(time.RFC3339, setting.Value) // zero is unknown
		case "vcs.modified":
			b.modified = setting.Value == "true"
		}
	}
	if b.commit != "" {
		return b
	}
	if match := pseudoVersion.FindStringSubmatch(info.Main.Version); match != nil {
		b.time, _ = time.Parse("20060102150405", match[1]) // zero is unknown
		b.commit, b.modified = match[2], match[3] != ""
	} else if tag, ok := strings.CutPrefix(info.Main.Version, "v"); ok {
		b.release = tag
	}
	return b
}

// shortCommit returns the first digits of the commit, as many as a pseudo-version has.
func (b build) shortCommit() string { return b.commit[:min(12, len(b.commit))] }

// version is for logs and metrics.
func (b build) version() string {
	text := b.release
	if b.commit != "" {
		text += "+" + b.shortCommit()
		if b.modified {
			text += ".modified"
		}
	}
	return text
}

// describe is for people.
func (b build) describe() string {
	commit := "unknown commit"
	if b.commit != "" {
		commit = "commit " + b.shortCommit()
		if !b.time.IsZero() {
			commit += " of " + b.time.UTC().Format(time.DateOnly)
		}
		if b.modified {
			commit += ", modified"
		}
	}
	return fmt.Sprintf("%s (%s; %s %s/%s; schema %d)", b.release, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH, index.SchemaVersion())
}
