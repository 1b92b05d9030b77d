// Package s3server runs a real S3 server for tests: versitygw, which stores objects as
// files. scripts/s3 has scripts for tests with other servers.
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
	// AccessKey and SecretKey have all permissions.
	AccessKey = "test-access-key"
	SecretKey = "test-secret-key"
	// Region is the server's.
	Region = "us-east-1"
	// startTimeout is how long the server may take to start.
	startTimeout = 30 * time.Second
)

// Server is an S3 server. URL creates its buckets.
type Server struct {
	// Address is HOST:PORT. A restart doesn't change it.
	Address string
	// Credentials is the name of a file with valid keys.
	Credentials string
	// Client is for set-up and assertions that must not depend on the code under test.
	Client *s3.Client

	program, directory string

	mu      sync.Mutex
	process *exec.Cmd
	ended   chan struct{}
	output  *bytes.Buffer
	buckets map[string]bool
}

// ProgramVariable is the environment variable with the name of a script that starts another
// server than versitygw. Its arguments are the address and an empty directory. The keys are
// in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
const ProgramVariable = "NAR_HERDER_S3_SERVER"

// Program returns the server's program. If versitygw is missing, the error is
// [exec.ErrNotFound] with the command that installs it.
func Program() (string, error) {
	if program := os.Getenv(ProgramVariable); program != "" {
		program, err := exec.LookPath(program)
		if err != nil {
			err = fmt.Errorf("%s: %v", ProgramVariable, err) // not ErrNotFound, which would skip the test
		}
		return program, err
	}
	return GoProgram("versitygw", "github.com/versity/versitygw/cmd/versitygw@v1.8.0")
}

// GoProgram returns a program that "go install" has installed. If it is missing, the error is
// [exec.ErrNotFound] with the command that installs it.
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

// goFolders returns the directories of "go install".
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

// New starts a server that is stopped after the test. If the program is missing, it skips
// the test, or fails it in CI.
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

// Start starts a server for several tests, with its files in the directory. The caller must
// Stop it. The error is [exec.ErrNotFound] if the program is missing.
func Start(directory string) (*Server, error) {
	program, err := Program()
	if err != nil {
		return nil, err
	}
	// The servers use plain HTTP. Parsing the machine's certificates would take most
	// of the time of a test.
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
	// Choose a free port, for all starts.
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

// WriteCredentials replaces the file of credentials atomically.
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
	// It must not outlive a test that is killed.
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

// isOther reports whether the server is not versitygw.
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

// waitReady waits until the server answers and accepts the keys.
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

// Command returns the server's process.
func (s *Server) Command() *exec.Cmd {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

// Stop stops the server and keeps its objects.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		_ = s.process.Process.Kill()
		<-s.ended
		s.process = nil
	}
}

// URL returns a URL for --storage of a place such as "bucket/prefix". It creates the bucket
// if necessary.
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

// Spoil changes an object's bytes on the disk. The error is [errors.ErrUnsupported] for
// another server than versitygw.
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

// AgeUploads sets the age of all unfinished uploads of a bucket, and of their parts if
// withParts is set. The error is [errors.ErrUnsupported] for another server than versitygw.
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

// ListsUploads reports whether the server lists unfinished uploads by prefix, as S3 does.
// MinIO lists them by exact name only.
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

// hasAttributes reports whether the file system supports user extended attributes, in which
// the server stores metadata.
func hasAttributes(directory string) bool {
	return unix.Setxattr(directory, "user.try", []byte("try"), 0) == nil
}
