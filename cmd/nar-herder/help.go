package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// groups are the groups of options in the help, in this order. The tag "group" of an option,
// or of the embedded struct that declares it, has the key.
var groups = []kong.Group{
	{Key: "common", Title: "Common:"},
	{Key: "items", Title: "Which items:"},
	{Key: "work", Title: "What to do:"},
	{Key: "listening", Title: "Listening:"},
	{Key: "storage", Title: "Index and storage:"},
	{Key: "caching", Title: "Client caching:"},
	{Key: "removal", Title: "Limit and removal:"},
	{Key: "compressions", Title: "Cached compressions:"},
	{Key: "mirror", Title: "Mirror and other instances:"},
	{Key: "upstreams", Title: "Upstreams:"},
	{Key: "storagecache", Title: "Cache in front of the storage:"},
	{Key: "dumps", Title: "Dumps:"},
	{Key: "keys", Title: "Keys and signatures:"},
	{Key: "page", Title: "Pages for browsers:"},
	{Key: "logging", Title: "Logging:"},
	{Key: "output", Title: "Output:"},
}

// groupOrder returns the position of an option's group. Options without a known group come
// first.
func groupOrder(option *kong.Flag) int {
	if option.Group == nil {
		return -1
	}
	return slices.IndexFunc(groups, func(g kong.Group) bool { return g.Key == option.Group.Key })
}

// sortByGroup sorts the options of all commands by group.
func sortByGroup(parser *kong.Kong) error {
	parser.Model.HelpFlag.Group = &groups[0]
	for _, node := range append([]*kong.Node{parser.Model.Node}, parser.Model.Children...) {
		slices.SortStableFunc(node.Flags, func(a, b *kong.Flag) int { return groupOrder(a) - groupOrder(b) })
	}
	return nil
}

// helpPage is what the help on a command says below its options.
type helpPage struct {
	examples []string // command lines without "nar-herder"
	commands []string // to see also
	pages    []string // in docs
}

// helpPages has a page for each command.
var helpPages = map[string]helpPage{
	"run-server": {
		[]string{
			"run-server --storage=/srv/nars --ttl=30d --negative-ttl=1h --log-level=INFO",
			"run-server --storage=/srv/nars --mirror=https://substitutes.example.org",
			"run-server --storage=/srv/nars --storage-limit=200G --upstream=https://ci.guix.gnu.org",
		},
		[]string{"config", "import", "plan-removal", "stats"},
		[]string{"install", "mirroring", "caching", "removing", "compressions", "bucket", "signing", "page", "monitoring", "sizing"},
	},
	"import": {
		[]string{
			"import --storage=/srv/nars --keep /srv/published",
			"import --storage=/srv/nars --acl=/etc/guix/acl --tag=system=x86_64-linux /srv/new",
		},
		[]string{"fetch", "check", "list", "sign"},
		[]string{"importing", "from-guix-publish", "security"},
	},
	"fetch": {
		[]string{"fetch --storage=/srv/nars --from=https://ci.guix.gnu.org --closure /gnu/store/nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0"},
		[]string{"import", "check", "pin"},
		[]string{"fetching", "caching", "laptop"},
	},
	"remove": {
		[]string{
			"remove --storage=/srv/nars --tag=release=1.2 --dry-run",
			"remove --storage=/srv/nars nxrz38jzshzw0q3fqi3fqimjg1zr62r9",
		},
		[]string{"list", "pin", "plan-removal", "drop-files"},
		[]string{"removing"},
	},
	"drop-files": {
		[]string{"drop-files --storage=/srv/nars --compression=gzip --all --dry-run"},
		[]string{"stats", "check", "remove"},
		[]string{"removing"},
	},
	"plan-removal": {
		[]string{"plan-removal --storage=/srv/nars --storage-limit=9T --storage-nar-removal-criteria=unused-for=12mo,unreferenced"},
		[]string{"run-server", "remove", "pin"},
		[]string{"removing", "sizing"},
	},
	"pin": {
		[]string{"pin nxrz38jzshzw0q3fqi3fqimjg1zr62r9"},
		[]string{"unpin", "pins", "remove"},
		[]string{"removing"},
	},
	"unpin": {
		[]string{"unpin nxrz38jzshzw0q3fqi3fqimjg1zr62r9"},
		[]string{"pin", "pins"},
		[]string{"removing"},
	},
	"pins": {
		[]string{"pins --json"},
		[]string{"pin", "unpin"},
		[]string{"removing"},
	},
	"tag": {
		[]string{"tag --closure release=1.2 nxrz38jzshzw0q3fqi3fqimjg1zr62r9"},
		[]string{"untag", "list", "import"},
		[]string{"importing"},
	},
	"untag": {
		[]string{"untag --closure release=1.2 nxrz38jzshzw0q3fqi3fqimjg1zr62r9"},
		[]string{"tag", "list"},
		[]string{"importing"},
	},
	"list": {
		[]string{"list --since=7d", "list --tag=release=1.2 --larger-than=1G --json"},
		[]string{"stats", "tag", "pins"},
		[]string{"importing", "removing"},
	},
	"export": {
		[]string{"export --storage=/srv/nars --tag=release=1.2 /srv/export"},
		[]string{"copy-storage", "convert"},
		[]string{"export"},
	},
	"copy-storage": {
		[]string{"copy-storage --from=/srv/nars --to=/mnt/nars --bandwidth=50M"},
		[]string{"claim-storage", "check", "export"},
		[]string{"operations", "bucket"},
	},
	"health": {
		[]string{"health http://127.0.0.1:8734"},
		[]string{"mirror-status", "stats"},
		[]string{"monitoring", "install"},
	},
	"backup": {
		[]string{"backup --replace /backup/nar-herder/Monday.db"},
		[]string{"claim-storage", "check", "migrate"},
		[]string{"backup", "drills"},
	},
	"check": {
		[]string{
			"check --storage=/srv/nars",
			"check --storage=/srv/nars --verify --verify-rate=50M",
			"check --storage=/srv/nars --repair --from=https://mirror.example.org",
		},
		[]string{"verify", "import", "fetch"},
		[]string{"operations", "security"},
	},
	"verify": {
		[]string{"verify --acl=/etc/guix/acl --storage=/srv/nars nxrz38jzshzw0q3fqi3fqimjg1zr62r9"},
		[]string{"check", "sign"},
		[]string{"signing", "security"},
	},
	"keygen": {
		[]string{"keygen /etc/nar-herder/signing-key.sec /etc/nar-herder/signing-key.pub"},
		[]string{"sign", "import"},
		[]string{"signing"},
	},
	"sign": {
		[]string{"sign --key=/etc/nar-herder/signing-key.sec --tag=release=1.2 --dry-run"},
		[]string{"keygen", "verify", "import"},
		[]string{"signing"},
	},
	"claim-storage": {
		[]string{"claim-storage --storage=/srv/nars"},
		[]string{"new-identity", "backup", "check"},
		[]string{"operations", "drills"},
	},
	"new-identity": {
		[]string{"new-identity --database=/var/lib/nar-herder/copy.db"},
		[]string{"claim-storage", "backup"},
		[]string{"operations"},
	},
	"dump": {
		[]string{"dump --database-dump=/var/lib/nar-herder/nar_herder_dump.db"},
		[]string{"backup", "mirror-status"},
		[]string{"mirroring"},
	},
	"mirror-status": {
		[]string{"mirror-status --max-lag=10min http://127.0.0.1:8734"},
		[]string{"mirror-accept-loss", "dump"},
		[]string{"mirroring", "monitoring"},
	},
	"mirror-accept-loss": {
		[]string{"mirror-accept-loss --database=/var/lib/nar-herder/nar_herder.db"},
		[]string{"mirror-status"},
		[]string{"mirroring", "backup"},
	},
	"stats": {
		[]string{"stats", "stats --json"},
		[]string{"list", "check"},
		[]string{"importing", "sizing"},
	},
	"migrate": {
		[]string{"migrate"},
		[]string{"backup", "convert"},
		[]string{"operations"},
	},
	"convert": {
		[]string{"convert --storage=/srv/nars /var/tmp/original.db /var/tmp/index.db"},
		[]string{"migrate", "run-server", "stats"},
		[]string{"from-the-original", "compatibility"},
	},
	"config": {
		[]string{"config --config=/etc/nar-herder.toml", "config --storage=/srv/nars --ttl=30d"},
		[]string{"run-server"},
		[]string{"install", "options"},
	},
	"version": {
		[]string{"version"},
		[]string{"migrate"},
		[]string{"operations"},
	},
	"help": {
		[]string{"help run-server", "help import"},
		[]string{"config"},
		[]string{"options", "glossary"},
	},
}

// seeAlso returns the commands and the pages as they are written in a text.
func (p helpPage) seeAlso() string {
	var all []string
	for _, name := range p.commands {
		all = append(all, "nar-herder "+name)
	}
	for _, name := range p.pages {
		all = append(all, "docs/"+name+".md")
	}
	return strings.Join(all, ", ")
}

// printHelp prints the help. For a command, it adds examples, the units of its options, and
// what to see also.
func printHelp(options kong.HelpOptions, parsed *kong.Context) error {
	if err := kong.DefaultHelpPrinter(options, parsed); err != nil {
		return err
	}
	command := parsed.Selected()
	if command == nil {
		return nil
	}
	page := helpPages[command.Name]
	text := "\nExamples:\n"
	for _, example := range page.examples {
		text += "  nar-herder " + example + "\n"
	}
	if _, err := io.WriteString(parsed.Stdout, text); err != nil {
		return err
	}
	var all units
	for _, flag := range command.Flags {
		all |= unitsOf(flag.Target.Type())
	}
	if err := printUnits(parsed.Stdout, all); err != nil {
		return err
	}
	_, err := fmt.Fprintf(parsed.Stdout, "\nSee also:\n%s", wrap(page.seeAlso(), "  ", 80))
	return err
}

// wrap breaks a list at its commas into lines of at most width bytes, each with the indent.
func wrap(list, indent string, width int) string {
	var b strings.Builder
	line := indent
	for i, word := range strings.Split(list, ", ") {
		switch {
		case i == 0:
		case len(line)+len(word)+3 > width:
			b.WriteString(line + ",\n")
			line = indent
		default:
			line += ", "
		}
		line += word
	}
	return b.String() + line + "\n"
}
