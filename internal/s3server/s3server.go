// Package s3server runs a real S3 server for tests: versitygw, which keeps objects
// as files of a directory. Other servers are tried by hand, with the scripts of
// scripts/s3.
package s3server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sys/unix"
)

const (
	// AccessKey and SecretKey are good for everything.
	AccessKey = "test-access-key"
	SecretKey = "test-secret-key"
	// Region is the server's.
	Region = "us-east-1"
	// startTimeout is how long the server may take until it answers.
	startTimeout = 30 * time.Second
)

// Server is a server of its own, with a bucket for each name that was asked for.
type Server struct {
	// Address is HOST:PORT, the same after a new start.
	Address string
	// Credentials names a file with good keys.
	Credentials string
	// Client is for what the code under test must not be trusted with.
	Client *s3.Client

	program, directory string

	mu      sync.Mutex
	process *exec.Cmd
	ended   chan struct{}
	output  *bytes.Buffer
	buckets map[string]bool
}

// ProgramVariable is the environment's name for a script that starts another server
// than versitygw, and gets its address, a directory that is its own, and the keys in
// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
const ProgramVariable = "NAR_HERDER_S3_SERVER"

// Program returns the server's program. The error is [exec.ErrNotFound], and says how
// to get it, where versitygw is missing.
func Program() (string, error) {
	if program := os.Getenv(ProgramVariable); program != "" {
		program, err := exec.LookPath(program)
		if err != nil {
			err = fmt.Errorf("%s: %v", ProgramVariable, err) // which is no reason to skip
		}
		return program, err
	}
	return GoProgram("versitygw", "github.com/versity/versitygw/cmd/versitygw@v1.8.0")
}

// GoProgram returns a program that "go install" has made of a package. The error is
// [exec.ErrNotFound], and says how to get it, where it is missing.
func GoProgram(name, pkg string) (string, error) {
	if program, err := exec.LookPath(name); err == nil {
		return program, nil
	}
	for _, folder := range goFolders() {
		if program, err := exec.LookPath(filepath.Join(folder, name)); err == nil {
			return program, nil
		}
	}
	return "", fmt.Errorf("%w: %s: go install %s", exec.ErrNotFound, name, pkg)
}

// goFolders are where "go install" puts programs.
func goFolders() []string {
	output, err := exec.Command("go", "env", "GOBIN", "GOPATH").Output()
	if err != nil {
		return nil
	}
	lines := strings.Split(string(output), "\n")
	folders := []string{}
	if lines[0] != "" {
		folders = append(folders, lines[0])
	}
	for _, path := range filepath.SplitList(lines[1]) {
		folders = append(folders, filepath.Join(path, "bin"))
	}
	return folders
}

// New starts a server that ends with the test. The test is skipped where the
// program is missing, but not in CI.
func New(t testing.TB) *Server {
	t.Helper()
	s, err := Start(t.TempDir())
	if errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// Start starts a server for several tests, which are to Stop it. It keeps
// everything in the directory. The error is [exec.ErrNotFound] where the program
// is missing.
func Start(directory string) (*Server, error) {
	program, err := Program()
	if err != nil {
		return nil, err
	}
	// The servers speak HTTP, and each store would parse all of the machine's
	// certificates, which takes most of the time of such a test.
	os.Unsetenv("AWS_CA_BUNDLE")
	s := &Server{
		program: program, directory: directory, buckets: map[string]bool{},
		Credentials: filepath.Join(directory, "credentials"),
	}
	err = errors.Join(
		os.Mkdir(filepath.Join(directory, "buckets"), 0o755), os.Mkdir(filepath.Join(directory, "attributes"), 0o755),
		s.WriteCredentials(AccessKey, SecretKey),
	)
	if err != nil {
		return nil, err
	}
	// The port is free now, and will be after a stop.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.Address = listener.Addr().String()
	listener.Close()
	s.Client = s3.New(s3.Options{
		BaseEndpoint: aws.String("http://" + s.Address), Region: Region, UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(AccessKey, SecretKey, ""),
	})
	return s, s.Start()
}

// WriteCredentials puts keys into the file of credentials, all at once.
func (s *Server) WriteCredentials(access, secret string) error {
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", access, secret)
	if err := os.WriteFile(s.Credentials+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(s.Credentials+".new", s.Credentials)
}

// Start starts the server again, after Stop.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.output = new(bytes.Buffer)
	s.process = s.command()
	s.process.Stdout, s.process.Stderr = s.output, s.output
	// It must not outlive a test that dies.
	s.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.process.Start(); err != nil {
		return err
	}
	s.ended = make(chan struct{})
	go func(process *exec.Cmd, ended chan struct{}) {
		_ = process.Wait()
		close(ended)
	}(s.process, s.ended)
	return s.waitReady()
}

// isOther says whether the server is another than versitygw.
func (s *Server) isOther() bool { return filepath.Base(s.program) != "versitygw" }

func (s *Server) command() *exec.Cmd {
	buckets := filepath.Join(s.directory, "buckets")
	if s.isOther() {
		command := exec.Command(s.program, s.Address, buckets)
		command.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+AccessKey, "AWS_SECRET_ACCESS_KEY="+SecretKey)
		return command
	}
	arguments := []string{"--access", AccessKey, "--secret", SecretKey, "--region", Region, "--port", s.Address, "--quiet", "--keep-alive", "posix"}
	if !hasAttributes(buckets) {
		arguments = append(arguments, "--sidecar", filepath.Join(s.directory, "attributes"))
	}
	return exec.Command(s.program, append(arguments, buckets)...)
}

// waitReady waits until the server answers, and knows the keys.
func (s *Server) waitReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := s.Client.ListBuckets(ctx, nil, func(o *s3.Options) { o.RetryMaxAttempts = 1 })
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.ended:
			return fmt.Errorf("%s has ended: %s", s.program, s.output)
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer on %s: %w", s.program, s.Address, err)
		}
	}
}

// Command is the server's process.
func (s *Server) Command() *exec.Cmd {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

// Stop ends the server. Its bytes stay.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		_ = s.process.Process.Kill()
		<-s.ended
		s.process = nil
	}
}

// URL is for --storage: a place in a bucket, such as "bucket/prefix". The bucket is
// made if need be.
func (s *Server) URL(place string) string { return s.url(place, "http://"+s.Address) }

func (s *Server) url(place, endpoint string) string {
	bucket, _, _ := strings.Cut(place, "/")
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.buckets[bucket] {
		if _, err := s.Client.CreateBucket(context.Background(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
			panic(fmt.Sprintf("make bucket %s: %v", bucket, err))
		}
		s.buckets[bucket] = true
	}
	return "s3://" + place + "?" + url.Values{"endpoint": {endpoint}, "region": {Region}, "credentials": {s.Credentials}}.Encode()
}

// Spoil changes an object's bytes behind the server's back, as a disk may. The error
// is [errors.ErrUnsupported] where the server keeps them in another way.
func (s *Server) Spoil(place string, content []byte) error {
	if s.isOther() {
		return errors.ErrUnsupported
	}
	file, err := os.OpenFile(filepath.Join(s.directory, "buckets", filepath.FromSlash(place)), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	return errors.Join(err, file.Close())
}

// AgeUploads makes all unfinished uploads of a bucket as old as that, with the parts
// that they have or without. The error is [errors.ErrUnsupported] where the server keeps
// them in another way.
func (s *Server) AgeUploads(bucket string, age time.Duration, withParts bool) error {
	if s.isOther() {
		return errors.ErrUnsupported
	}
	at := time.Now().Add(-age)
	folder := filepath.Join(s.directory, "buckets", bucket, ".sgwtmp", "multipart")
	return filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !withParts && !entry.IsDir() {
			return err
		}
		return os.Chtimes(path, at, at)
	})
}

// ListsUploads says whether the server lists unfinished uploads of several names, as
// S3 does. MinIO lists those of one name that is asked for.
func (s *Server) ListsUploads(ctx context.Context) (bool, error) {
	if !s.isOther() {
		return true, nil
	}
	bucket, key := aws.String("listsuploads"), aws.String("folder/name")
	if _, err := s.Client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: bucket}); err != nil {
		return false, err
	}
	upload, err := s.Client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: bucket, Key: key})
	if err != nil {
		return false, err
	}
	listed, err := s.Client.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: bucket, Prefix: aws.String("folder/")})
	if err != nil {
		return false, err
	}
	_, err = s.Client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: bucket, Key: key, UploadId: upload.UploadId})
	return len(listed.Uploads) == 1, err
}

// hasAttributes says whether the file system has extended attributes of users,
// where the server keeps what it knows of an object.
func hasAttributes(directory string) bool {
	return unix.Setxattr(directory, "user.try", []byte("try"), 0) == nil
}
