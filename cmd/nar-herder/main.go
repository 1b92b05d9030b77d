// Command nar-herder serves substitutes to GNU Guix: narinfos out of an index,
// nars out of a storage.
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
	// A terminal that goes away, or a supervisor's habit, ends nothing.
	signal.Ignore(syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// commands is the command line.
type commands struct {
	RunServer    serverCommand       `cmd:"" help:"Serve narinfos and nars over HTTP."`
	Import       importCommand       `cmd:"" help:"Add narinfos, and the nars beside them, to the index and the storage."`
	Remove       removeCommand       `cmd:"" help:"Remove items: their narinfos and their nars."`
	Pin          pinCommand          `cmd:"" help:"Keep items and all that they need from being removed."`
	Unpin        unpinCommand        `cmd:"" help:"Let items be removed again."`
	Pins         pinsCommand         `cmd:"" help:"List what is pinned."`
	List         listCommand         `cmd:"" help:"List the items of the index."`
	Export       exportCommand       `cmd:"" help:"Make a directory of narinfos and nars for any server of files, or bring it up to date."`
	Copy         copyCommand         `cmd:"" help:"Bring all nars of a storage into another, such as a new disk."`
	Check        checkCommand        `cmd:"" help:"Compare the index with the storage, and repair what is wrong."`
	TakeStorage  takeStorageCommand  `cmd:"" help:"Make this instance the one that writes to a storage and removes from it."`
	Dump         dumpCommand         `cmd:"" help:"Make the copy of the index that other instances begin with."`
	MirrorStatus mirrorStatusCommand `cmd:"" help:"Show how far a mirror is behind the instance that it mirrors."`
	MirrorAccept mirrorAcceptCommand `cmd:"" help:"Have a mirror follow its source although that has lost or removed much."`
	Stats        statsCommand        `cmd:"" help:"Show how much there is in the index and the storage."`
	Convert      convertCommand      `cmd:"" help:"Convert a database of the original Nar Herder to an index, or an index to one of the original."`
	Version      versionCommand      `cmd:"" help:"Show the version."`
	Help         helpCommand         `cmd:"" help:"Show help on a command."`
}

// streams is where commands read from and write to.
type streams struct {
	in       io.Reader
	out, err io.Writer
	parser   *kong.Kong
}

// errReported is for a command that has said itself what went wrong.
var errReported = errors.New("some of it failed")

// run does what the arguments say, and returns the exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	exited := -1 // by the option --help
	parser, err := kong.New(new(commands),
		kong.Name("nar-herder"),
		kong.Description("A substitute server for GNU Guix that keeps narinfos in an index and nars in a storage."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exited = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Bind(&streams{in: stdin, out: stdout, err: stderr}),
		kong.BindTo(ctx, (*context.Context)(nil)),
	)
	if err != nil {
		fmt.Fprintln(stderr, "nar-herder:", err)
		return 1
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	command, err := parser.Parse(args)
	if exited >= 0 {
		return exited
	}
	if err == nil {
		err = command.Run(&streams{in: stdin, out: stdout, err: stderr, parser: parser})
	}
	if exited >= 0 { // by the command help
		return exited
	}
	var usage *kong.ParseError
	var status statusError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.Is(err, errReported):
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "nar-herder: %s (see 'nar-herder help')\n", oneLine(err))
	default:
		fmt.Fprintln(stderr, "nar-herder:", oneLine(err))
	}
	return 1
}

// oneLine is an error's text without line breaks, of joined errors or of what
// the user gave, and without passwords in URLs.
func oneLine(err error) string {
	return redact.Text(strings.ReplaceAll(err.Error(), "\n", "; "))
}

type versionCommand struct{}

func (versionCommand) Run(s *streams) error {
	fmt.Fprintln(s.out, "nar-herder", version())
	return nil
}

// release is the version that this tree leads to.
const release = "0.1.0"

// version adds the revision, where the program was built from a checkout.
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
	Command []string `arg:"" optional:"" help:"The command to explain."`
}

func (c helpCommand) Run(s *streams) error {
	// Its exit hook does not end the program here.
	_, err := s.parser.Parse(append(c.Command, "--help"))
	return err
}
