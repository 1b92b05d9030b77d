package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"nar-herder/compression"
	"nar-herder/compression/cached"
	"nar-herder/narinfo"
)

// codecVariable makes this program run one codec, so that our codecs and the C programs are
// both measured as processes.
const codecVariable = "NAR_HERDER_BENCH_CODEC"

// codecSources bounds the Go sources in the input. The program follows them: like a store item,
// the input consists of text and machine code.
const codecSources = 20 << 20

// codecLevels are the measured levels of each compression.
var codecLevels = []struct {
	name     string
	programs []string // the first that is installed
	levels   []int
}{
	{"lzip", lzipPrograms, []int{0, 6, 9}},
	{"zstd", []string{"zstd"}, []int{1, 3, 9, 19}},
	{"gzip", []string{"gzip"}, []int{1, 6, 9}},
}

// lzipPrograms are the names of lzip. Debian may have plzip, which uses all cores, behind the name
// lzip.
var lzipPrograms = []string{"lzip.lzip", "lzip"}

// lookUpProgram returns the path of the first of the programs that is installed.
func lookUpProgram(names []string) (path string, err error) {
	for _, name := range names {
		if path, err = exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: on Debian, apt-get install lzip zstd gzip", err)
}

// codecs measures each codec on one core, and then jobs of the cache on all cores.
func (b *bench) codecs() error {
	plain := filepath.Join(b.work, "plain")
	if err := b.codecInput(plain); err != nil {
		return err
	}
	programs := make(map[string]string)
	for _, c := range codecLevels {
		var err error
		if programs[c.name], err = lookUpProgram(c.programs); err != nil {
			return err
		}
	}
	for _, c := range codecLevels {
		for _, level := range c.levels {
			if err := b.codecLevel(plain, c.name, programs[c.name], level); err != nil {
				return err
			}
		}
	}
	for _, level := range []int{1, 3, 6, 9, 19} {
		if err := b.codecJob(plain, programs, level); err != nil {
			return err
		}
	}
	return nil
}

// codecInput writes the input of the codecs.
func (b *bench) codecInput(name string) (err error) {
	root, err := exec.CommandContext(b.ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env GOROOT: %w", err)
	}
	out, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	var size int64
	add := func(name string) error {
		in, err := os.Open(name)
		if err != nil {
			return err
		}
		defer in.Close()
		n, err := io.Copy(out, in)
		size += n
		return err
	}
	err = filepath.WalkDir(filepath.Join(strings.TrimSpace(string(root)), "src"), func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || filepath.Ext(name) != ".go" {
			return err
		}
		if size >= codecSources {
			return fs.SkipAll
		}
		return add(name)
	})
	if err != nil {
		return err
	}
	return add(b.binary)
}

// codecLevel measures encoding, decoding and size of a level against the program.
func (b *bench) codecLevel(plain, name, program string, level int) error {
	ours, theirs, longer := filepath.Join(b.work, "ours"), filepath.Join(b.work, "theirs"), filepath.Join(b.work, "longer")
	copies := 8
	if name == "lzip" {
		copies = 1
	}
	var encode, decode times
	for range b.rounds {
		err := encode.add(
			func() (float64, error) {
				return b.timed(plain, ours, true, "encode "+name+" "+strconv.Itoa(level))
			},
			func() (float64, error) {
				return b.timed(plain, theirs, true, "", program, "-"+strconv.Itoa(level), "-c")
			})
		if err != nil {
			return err
		}
		// Both decode the program's output. It is repeated if one copy takes only
		// milliseconds, like the start of a process.
		if err := repeat(theirs, longer, copies); err != nil {
			return err
		}
		err = decode.add(
			func() (float64, error) { return b.timed(longer, os.DevNull, true, "decode "+name) },
			func() (float64, error) { return b.timed(longer, os.DevNull, true, "", program, "-dc") })
		if err != nil {
			return err
		}
	}
	size := sizeOf(plain)
	label := fmt.Sprintf("%s -%d", name, level)
	b.add(label+" encode, one core", "MB/s ", perSecond(size, encode.ours), perSecond(size, encode.theirs), 0, false)
	b.add(label+" size", "MB ", []float64{sizeOf(ours) / 1e6}, []float64{sizeOf(theirs) / 1e6}, 0, false)
	b.add(label+" decode, one core", "MB/s ", perSecond(size*float64(copies), decode.ours), perSecond(size*float64(copies), decode.theirs), 1, false)
	return nil
}

// codecJob measures a job of the cache against a pipe of the programs, which verifies nothing.
func (b *bench) codecJob(plain string, programs map[string]string, level int) error {
	stored, made := plain+".lz", filepath.Join(b.work, "made")
	if _, err := os.Stat(stored); errors.Is(err, fs.ErrNotExist) {
		if _, err := b.timed(plain, stored, false, "", programs["lzip"], "-6", "-c"); err != nil {
			return err
		}
	}
	hash, err := hashFile(plain)
	if err != nil {
		return err
	}
	var transcode, job times
	pipe := func() (float64, error) {
		return b.timed(stored, made, false, "", "sh", "-c", fmt.Sprintf("%s -dc | %s -q -%d -c", programs["lzip"], programs["zstd"], level))
	}
	for range b.rounds {
		err := errors.Join(
			transcode.add(func() (float64, error) {
				return b.timed(stored, made, false, fmt.Sprintf("transcode zstd %d", level))
			}, pipe),
			job.add(func() (float64, error) {
				return b.timed(stored, made, false, fmt.Sprintf("job zstd %d %s %d", level, hash, int64(sizeOf(plain))))
			}, pipe))
		if err != nil {
			return err
		}
	}
	size := sizeOf(plain)
	bar := 0.0
	if level <= 9 {
		bar = 1
	}
	label := fmt.Sprintf("lzip to zstd -%d, against lzip -dc piped to zstd", level)
	b.add(label+", recompressed only", "MB/s ", perSecond(size, transcode.ours), perSecond(size, transcode.theirs), 0, false)
	b.add(label+", the whole job with both checks of the NarHash", "MB/s ", perSecond(size, job.ours), perSecond(size, job.theirs), bar, false)
	return nil
}

// times are in seconds, one of each per round.
type times struct{ ours, theirs []float64 }

func (p *times) add(ours, theirs func() (float64, error)) error {
	first, err := ours()
	if err != nil {
		return err
	}
	second, err := theirs()
	p.ours, p.theirs = append(p.ours, first), append(p.theirs, second)
	return err
}

// timed runs a command with input and output files, and returns the seconds that it took. With
// work, the command is this program.
func (b *bench) timed(from, to string, oneCore bool, work string, command ...string) (float64, error) {
	if work != "" {
		self, err := os.Executable()
		if err != nil {
			return 0, err
		}
		command = []string{self}
	}
	if oneCore {
		command = append([]string{"taskset", "-c", "0"}, command...)
	}
	in, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	cmd := exec.CommandContext(b.ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), codecVariable+"="+work)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, os.Stderr
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%s %s: %w", strings.Join(command, " "), work, err)
	}
	return time.Since(begin).Seconds(), nil
}

// repeat writes copies of a file to another one. In all three formats, concatenated files are a
// valid file.
func repeat(from, to string, times int) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, bytes.Repeat(content, times), 0o644)
}

func perSecond(size float64, seconds []float64) []float64 {
	rates := make([]float64, len(seconds))
	for i, s := range seconds {
		rates[i] = size / 1e6 / s
	}
	return rates
}

// sizeOf returns the size of a file, or 0 if it is missing.
func sizeOf(name string) float64 {
	info, err := os.Stat(name)
	if err != nil {
		return 0
	}
	return float64(info.Size())
}

func hashFile(name string) (string, error) {
	file, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", err
	}
	return narinfo.NarHash(sum.Sum(nil)).String(), nil
}

// codec runs one codec from standard input to standard output.
func codec(work []string) error {
	in := bufio.NewReaderSize(os.Stdin, 256<<10)
	if len(work) == 2 && work[0] == "decode" {
		reader, err := compression.NewReader(work[1], in)
		if err != nil {
			return err
		}
		defer reader.Close()
		_, err = io.Copy(os.Stdout, reader)
		return err
	}
	if len(work) < 3 {
		return fmt.Errorf("%s=%q: encode, decode, transcode or job", codecVariable, work)
	}
	level, err := strconv.Atoi(work[2])
	if err != nil {
		return err
	}
	if work[0] == "job" && len(work) == 5 {
		n := new(narinfo.Narinfo)
		if n.NarSize, err = strconv.ParseInt(work[4], 10, 64); err != nil {
			return err
		}
		if n.NarHash, err = narinfo.ParseNarHash(work[3]); err != nil {
			return err
		}
		// Standard output is not open for reading.
		written, err := os.Open("/proc/self/fd/1")
		if err != nil {
			return err
		}
		defer written.Close()
		return cached.Transcode(context.Background(), n, in, "lzip", compression.Spec{Name: work[1], Level: level}, os.Stdout, written, nil)
	}
	var source io.Reader = in
	if work[0] == "transcode" {
		reader, err := compression.NewReader("lzip", in)
		if err != nil {
			return err
		}
		defer reader.Close()
		source = reader
	}
	writer, err := compression.NewWriter(work[1], level, os.Stdout)
	if err != nil {
		return err
	}
	_, err = io.Copy(writer, source)
	return errors.Join(err, writer.Close())
}
