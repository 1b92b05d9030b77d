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
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"nar-herder/internal/redact"
)

func main() {
	// Ignore SIGHUP: a closed terminal or a supervisor's reload must not stop the server.
	signal.Ignore(syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// commands is the command line.
type commands struct {
	Config      string           `placeholder:"FILE" help:"TOML file of options. The command line and the environment take precedence: see 'nar-herder help config'."`
	ShowVersion kong.VersionFlag `name:"version" help:"Show the version."`

	RunServer        serverCommand           `cmd:"" help:"Serve narinfos and nars over HTTP."`
	Import           importCommand           `cmd:"" help:"Add narinfos and their nars to the index and the storage."`
	Remove           removeCommand           `cmd:"" help:"Remove items, with their narinfos and nars."`
	PlanRemoval      planRemovalCommand      `cmd:"" help:"Show what run-server would remove to keep the storage limit, and why."`
	Pin              pinCommand              `cmd:"" help:"Protect items, and everything they refer to, from removal."`
	Unpin            unpinCommand            `cmd:"" help:"Allow items to be removed again."`
	Pins             pinsCommand             `cmd:"" help:"List the pins."`
	Tag              tagCommand              `cmd:"" help:"Add a tag to items."`
	Untag            untagCommand            `cmd:"" help:"Remove a tag from items."`
	List             listCommand             `cmd:"" help:"List the items of the index."`
	Export           exportCommand           `cmd:"" help:"Write or update a directory of narinfos and nars that any static file server can serve."`
	CopyStorage      copyStorageCommand      `cmd:"" help:"Copy all nars of a storage to another, such as a new disk."`
	Backup           backupCommand           `cmd:"" help:"Write a consistent copy of the database."`
	Check            checkCommand            `cmd:"" help:"Compare the index with the storage, and repair differences."`
	Verify           verifyCommand           `cmd:"" help:"Show who signed narinfos, whether the key is authorized, and whether their nars are right."`
	Keygen           keygenCommand           `cmd:"" help:"Make a key to sign narinfos with."`
	Sign             signCommand             `cmd:"" help:"Sign narinfos of the index, or files."`
	ClaimStorage     claimStorageCommand     `cmd:"" help:"Show the owner of a storage, or make this instance the owner."`
	NewIdentity      newIdentityCommand      `cmd:"" help:"Give a copied database its own id."`
	Dump             dumpCommand             `cmd:"" help:"Write the dump of the index that other instances start from."`
	MirrorStatus     mirrorStatusCommand     `cmd:"" help:"Show how far a mirror is behind its source."`
	MirrorAcceptLoss mirrorAcceptLossCommand `cmd:"" help:"Accept a mass removal at the source, and keep following it."`
	Stats            statsCommand            `cmd:"" help:"Show the number and size of the items."`
	Migrate          migrateCommand          `cmd:"" help:"Migrate a database of an older version of this program."`
	Convert          convertCommand          `cmd:"" help:"Convert a database of the original Nar Herder to an index, or an index to such a database."`
	ShowConfig       configCommand           `cmd:"" name:"config" help:"Show the effective options of run-server, and where each comes from."`
	Version          versionCommand          `cmd:"" help:"Show the version."`
	Help             helpCommand             `cmd:"" help:"Show help on a command."`
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

// newParser makes the parser of the command line. It calls exit for --help and --version.
func newParser(ctx context.Context, s *streams, settings *settings, exit func(int)) (*kong.Kong, error) {
	return kong.New(new(commands),
		kong.Name("nar-herder"),
		kong.Description("Substitute server for GNU Guix. It keeps narinfos in an index and nars in a storage. Options can also be set in the environment or a file: see 'nar-herder help config'."),
		kong.Writers(s.out, s.err),
		kong.Exit(exit),
		kong.Vars{"version": "nar-herder " + version()},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Help(printHelp),
		kong.Bind(s),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(settings),
	)
}

// run runs the command that the arguments name, and returns the exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	exited := -1 // set by --help, --version and the command help
	s := &streams{in: stdin, out: stdout, err: stderr}
	settings := new(settings)
	parser, err := newParser(ctx, s, settings, func(code int) { exited = code })
	if err != nil {
		printf(stderr, "nar-herder: %v\n", err)
		return int(statusFailed)
	}
	s.parser = parser
	if len(args) == 0 {
		args = []string{"--help"}
	}
	command, err := parser.Parse(args)
	if err == nil && exited < 0 {
		err = command.Run()
	}
	if exited >= 0 {
		return exited
	}
	return report(err, settings, stderr)
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

type versionCommand struct{}

func (versionCommand) Run(s *streams) error {
	fmt.Fprintln(s.out, "nar-herder", version())
	return nil
}

// release is the version of the next release.
const release = "0.1.0"

// version returns the release, with the revision if the program was built from a checkout.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" {
				return release + "+" + setting.Value[:min(12, len(setting.Value))]
			}
		}
	}
	return release
}

type helpCommand struct {
	Command []string `arg:"" optional:"" help:"Command to explain."`
}

func (c helpCommand) Run(s *streams) error {
	// --help calls the exit hook, which returns here.
	_, err := s.parser.Parse(append(c.Command, "--help"))
	return err
}
