package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"nar-herder/storage/bytestore"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// TestSum: an object has the checksum of its bytes until another program changes them, even if
// that keeps the metadata.
func TestSum(t *testing.T) {
	t.Parallel()
	random := rand.NewChaCha8([32]byte{1})
	for _, size := range []int64{0, 5, mostInMemory, mostInMemory + 1, smallestPart, smallestPart + 1, 2*smallestPart + 3} {
		content := make([]byte, size)
		_, _ = random.Read(content)
		all := sha256.Sum256(content)
		for kind, source := range map[string]func() io.Reader{
			"file":   func() io.Reader { return bytes.NewReader(content) },
			"stream": func() io.Reader { return io.MultiReader(bytes.NewReader(content)) },
		} {
			t.Run(fmt.Sprintf("%s of %d bytes", kind, size), func(t *testing.T) {
				t.Parallel()
				url := place(t)
				b := open(t, url, Options{})
				const name = "nar/x"
				staged, err := b.Stage(t.Context(), name, source(), size)
				if err == nil {
					err = staged.Commit(t.Context())
				}
				if err != nil {
					t.Fatal(err)
				}
				want := [16]byte(all[:16])
				if kind == "stream" && size > smallestPart {
					want = [16]byte{} // it can't be read twice
				}
				for how, info := range infos(t, b, name, size) {
					if info.Sum != want {
						t.Errorf("%s: sum %x, want %x", how, info.Sum, want)
					}
				}
				if size == 0 {
					return
				}
				// As s3fs does.
				head, err := server.Client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &b.bucket, Key: aws.String(b.key(name))})
				if err != nil {
					t.Fatal(err)
				}
				head.Body.Close()
				other := bytes.Clone(content)
				other[size/2] ^= 1
				if err := putObject(b, name, other, head.Metadata); err != nil {
					t.Fatal(err)
				}
				for how, info := range infos(t, b, name, size) {
					if info.Sum != [16]byte{} {
						t.Errorf("%s: other bytes have the sum %x", how, info.Sum)
					}
				}
			})
		}
	}
}

func putObject(b *Bucket, name string, content []byte, metadata map[string]string) error {
	_, err := server.Client.PutObject(context.Background(), &s3.PutObjectInput{
		Bucket: &b.bucket, Key: aws.String(b.key(name)), Body: bytes.NewReader(content), Metadata: metadata,
	})
	return err
}

// infos returns the Info of each method that describes an object.
func infos(t *testing.T, b *Bucket, name string, size int64) map[string]bytestore.Info {
	t.Helper()
	infos := make(map[string]bytestore.Info)
	var err error
	if infos["Stat"], err = b.Stat(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	for how, part := range map[string][2]int64{"whole": {0, -1}, "part": {size / 2, 1}, "nothing": {0, 0}} {
		reader, info, err := b.Open(t.Context(), name, part[0], part[1])
		if err != nil {
			t.Fatal(err)
		}
		reader.Close()
		infos[how] = info
	}
	return infos
}

// TestSumOfChanged: a file that changes between the reads for its checksum and for the upload
// has none.
func TestSumOfChanged(t *testing.T) {
	t.Parallel()
	b := open(t, place(t), Options{})
	const size = smallestPart + 1
	before, after := make([]byte, size), bytes.Repeat([]byte{1}, size)
	staged, err := b.Stage(t.Context(), "nar/x", struct {
		io.Reader
		io.ReaderAt
	}{bytes.NewReader(after), bytes.NewReader(before)}, size)
	if err == nil {
		err = staged.Commit(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if info, err := b.Stat(t.Context(), "nar/x"); err != nil || info.Sum != [16]byte{} {
		t.Errorf("sum %x, %v", info.Sum, err)
	}
}

// TestSumOfOthers: objects and metadata of other programs have no checksum.
func TestSumOfOthers(t *testing.T) {
	t.Parallel()
	b := open(t, place(t), Options{})
	content := []byte("content")
	good := sumOfWhole(content)
	for _, text := range []string{"", "-", good[:len(good)-1], good[1:], "x" + good[1:], good[:64], good[:65], "é", good + "-1"} {
		if err := putObject(b, "nar/x", content, map[string]string{sumKey: text}); err != nil {
			t.Logf("%q: %v", text, err) // the server may reject it
			continue
		}
		if info, err := b.Stat(t.Context(), "nar/x"); err != nil || info.Sum != [16]byte{} {
			t.Errorf("%q: sum %x, %v", text, info.Sum, err)
		}
	}
	if err := putObject(b, "nar/x", content, map[string]string{sumKey: good}); err != nil {
		t.Fatal(err)
	}
	if info, err := b.Stat(t.Context(), "nar/x"); err != nil || info.Sum == [16]byte{} {
		t.Errorf("%v: a valid sum is ignored", err)
	}
}
