// Command nar-herder serves substitutes to GNU Guix: narinfos from an index, and nars from a
// storage.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"nar-herder/internal/redact"
)

func main() {
	// Ignore SIGHUP: a closed terminal or a supervisor's reload must not stop the program. The
	// server reloads files, see onHangup.
	signal.Ignore(syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, errorOutput()))
}

// globals are the options of all commands.
type globals struct {
	Config      string           `group:"common" placeholder:"FILE" help:"TOML file of options. The command line and the environment take precedence: see 'nar-herder help config'."`
	ShowVersion kong.VersionFlag `group:"common" name:"version" help:"Show the version."`
}

// subcommand is a command of the program.
type subcommand struct {
	name, help string
	options    func() any // a pointer to a struct with a method Run
}

// subcommands are all commands, in the order of the help.
var subcommands = []subcommand{
	{"run-server", "Serve narinfos and nars over HTTP.", fresh[serverCommand]},
	{"import", "Add narinfos and their nars to the index and the storage.", fresh[importCommand]},
	{"fetch", "Fetch items from substitute servers before clients request them.", fresh[fetchCommand]},
	{"remove", "Remove items, with their narinfos and nars.", fresh[removeCommand]},
	{"drop-files", "Remove the nars of one compression from items that keep another.", fresh[dropFilesCommand]},
	{"plan-removal", "Show what run-server would remove to keep the storage limit, and why.", fresh[planRemovalCommand]},
	{"pin", "Protect items, and everything they refer to, from removal.", fresh[pinCommand]},
	{"unpin", "Allow items to be removed again.", fresh[unpinCommand]},
	{"pins", "List the pins.", fresh[pinsCommand]},
	{"tag", "Add a tag to items.", fresh[tagCommand]},
	{"untag", "Remove a tag from items.", fresh[untagCommand]},
	{"list", "List the items of the index.", fresh[listCommand]},
	{"export", "Write or update a directory of narinfos and nars that any static file server can serve.", fresh[exportCommand]},
	{"copy-storage", "Copy all nars of a storage to another, such as a new disk.", fresh[copyStorageCommand]},
	{"backup", "Write a consistent copy of the database.", fresh[backupCommand]},
	{"check", "Compare the index with the storage, and repair differences.", fresh[checkCommand]},
	{"verify", "Show who signed narinfos, whether the key is authorized, and whether their nars are right.", fresh[verifyCommand]},
	{"keygen", "Make a key to sign narinfos with.", fresh[keygenCommand]},
	{"sign", "Sign narinfos of the index, or files.", fresh[signCommand]},
	{"claim-storage", "Show the owner of a storage, or make this instance the owner.", fresh[claimStorageCommand]},
	{"new-identity", "Give a copied database its own id.", fresh[newIdentityCommand]},
	{"dump", "Write the dump of the index that other instances start from.", fresh[dumpCommand]},
	{"health", "Ask a server whether it is ready.", fresh[healthCommand]},
	{"mirror-status", "Show how far a mirror is behind its source.", fresh[mirrorStatusCommand]},
	{"mirror-accept-loss", "Accept a mass removal at the source, and keep following it.", fresh[mirrorAcceptLossCommand]},
	{"stats", "Show the number and size of the items.", fresh[statsCommand]},
	{"migrate", "Migrate a database of an older version of this program.", fresh[migrateCommand]},
	{"convert", "Convert a database of the original Nar Herder to an index, or an index to such a database.", fresh[convertCommand]},
	{"config", "Show the effective options of run-server, and where each comes from.", fresh[configCommand]},
	{"version", "Show the version.", fresh[versionCommand]},
	{"help", "Show help on a command.", fresh[helpCommand]},
}

func fresh[T any]() any { return new(T) }

// namedBy returns the command that the arguments begin with, or else all, for the help and
// messages that name others. Making a parser of all takes eight times as long.
func namedBy(args []string) []subcommand {
	for i, c := range subcommands {
		if len(args) > 0 && args[0] == c.name && c.name != "help" {
			return subcommands[i : i+1]
		}
	}
	return subcommands
}

// streams are the standard streams of a command.
type streams struct {
	in       io.Reader
	out, err io.Writer
	parser   *kong.Kong
}

// Exit statuses, which mean the same in every command.
const (
	// statusFailed means that something is wrong, or that some of the work failed.
	statusFailed statusError = 1
	// statusUnknown means that the command could not determine its answer.
	statusUnknown statusError = 2
	// statusUsage is EX_USAGE of sysexits.h: the arguments are wrong, and trying again is
	// useless.
	statusUsage = 64
)

// statusError ends the program with that status and no further message.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// unknownError ends the program with statusUnknown.
type unknownError struct{ error }

func (e unknownError) Unwrap() error { return e.error }

// usageError ends the program with statusUsage.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// usagef formats a usageError.
func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// newParser makes the parser of a command line with these commands. It calls exit for
// --help and --version.
func newParser(ctx context.Context, of []subcommand, s *streams, settings *settings, exit func(int)) (*kong.Kong, error) {
	options := []kong.Option{
		kong.Name("nar-herder"),
		kong.Description("Substitute server for GNU Guix. It keeps narinfos in an index and nars in a storage. Options can also be set in the environment or a file: see 'nar-herder help config'."),
		kong.Writers(s.out, s.err),
		kong.Exit(exit),
		kong.Vars{"version": "nar-herder " + builtFrom().describe()},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Help(printHelp),
		kong.ExplicitGroups(groups),
		kong.PostBuild(sortByGroup),
		kong.Bind(s),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(settings),
	}
	for _, c := range of {
		options = append(options, kong.DynamicCommand(c.name, c.help, "", c.options()))
	}
	return kong.New(new(globals), options...)
}

// run runs the command that the arguments name, and returns the exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	exited := -1 // set by --help, --version and the command help
	s := &streams{in: stdin, out: stdout, err: stderr}
	settings := new(settings)
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parser, err := newParser(ctx, namedBy(args), s, settings, func(code int) { exited = code })
	if err != nil {
		printf(stderr, "nar-herder: %v\n", err)
		return int(statusFailed)
	}
	s.parser = parser
	command, err := parser.Parse(args)
	if err == nil && exited < 0 {
		err = command.Run()
	}
	if exited >= 0 {
		return exited
	}
	return report(err, settings, s.err)
}

// report prints the error of a command, and returns the exit status.
func report(err error, settings *settings, stderr io.Writer) int {
	var parse *kong.ParseError
	var usage usageError
	var unknown unknownError
	var status statusError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	message := redact.Text(settings.explain(oneLine(err)))
	switch {
	case errors.As(err, &parse):
		printf(stderr, "nar-herder: %s (see '%s')\n", message, helpFor(parse))
		return statusUsage
	case errors.As(err, &usage):
		fmt.Fprintln(stderr, "nar-herder:", message)
		return statusUsage
	}
	fmt.Fprintln(stderr, "nar-herder:", message)
	if errors.As(err, &unknown) {
		return int(statusUnknown)
	}
	return int(statusFailed)
}

// helpFor returns the help command to name after an error of the parser.
func helpFor(err *kong.ParseError) string {
	if err.Context != nil {
		if command := err.Context.Selected(); command != nil {
			return "nar-herder " + command.Name + " --help"
		}
	}
	return "nar-herder help"
}

// oneLine returns the text of an error on one line, without control characters and without
// passwords in URLs.
func oneLine(err error) string {
	return redact.Visible(redact.Text(strings.ReplaceAll(err.Error(), "\n", "; ")))
}

type helpCommand struct {
	Command []string `arg:"" optional:"" help:"Command to explain."`
}

func (c helpCommand) Run(s *streams) error {
	// --help calls the exit hook, which returns here.
	_, err := s.parser.Parse(append(c.Command, "--help"))
	return err
}
