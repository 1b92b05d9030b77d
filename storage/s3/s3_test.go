package s3

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"

	"nar-herder/internal/s3server"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/storagetest"
)

// server is for all tests that don't stop it; nil if the program is missing.
var server *s3server.Server

// listsUploads is true if the server lists unfinished uploads as S3 does.
var listsUploads bool

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	// Ignore the machine's own configuration.
	os.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	directory, err := os.MkdirTemp("", "nar-herder-s3-")
	if err == nil {
		defer os.RemoveAll(directory)
		server, err = s3server.Start(directory)
	}
	if err == nil {
		defer server.Stop()
		listsUploads, err = server.ListsUploads(context.Background())
	}
	if errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") != "true" {
		fmt.Fprintln(os.Stderr, "tests with a server are skipped:", err)
		return m.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

var places atomic.Int64

// place returns the URL of an empty place.
func place(t testing.TB) string {
	t.Helper()
	if server == nil {
		t.Skip("the S3 server is missing")
	}
	return placeAt(server.URL)
}

// placeAt is place for another URL of the server.
func placeAt(url func(place string) string) string {
	return url(fmt.Sprintf("tests/of %d", places.Add(1)))
}

// open opens a place for the test.
func open(t testing.TB, url string, options Options) *Bucket {
	t.Helper()
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	b, err := Open(t.Context(), url, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func TestConformance(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(t *testing.T) bytestore.Store { return open(t, place(t), Options{}) })
}

// TestConformanceOfProviders runs the suite with each provider.
func TestConformanceOfProviders(t *testing.T) {
	t.Parallel()
	if server == nil {
		t.Skip("the S3 server is missing")
	}
	for _, provider := range s3server.Providers {
		t.Run(string(provider), func(t *testing.T) {
			t.Parallel()
			front := server.Front(t, provider)
			except := []string{}
			if provider == s3server.Backblaze {
				except = append(except, storagetest.CommitNewAtOnce)
			}
			storagetest.Run(t, func(t *testing.T) bytestore.Store { return open(t, placeAt(front.URL), Options{}) }, except...)
		})
	}
}
