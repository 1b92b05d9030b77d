package bootstrap

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"nar-herder/internal/hostile"
	"nar-herder/internal/mirrortest"
	"nar-herder/mirror/cursor"
	"nar-herder/mirror/original"
	"nar-herder/mirror/sourcedump"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// mutate damages a file, as disks, memory and people do.
func mutate(random *rand.Rand, content []byte) []byte {
	const page = 4096
	damaged := bytes.Clone(content)
	at := func() int { return random.IntN(len(damaged)) }
	switch random.IntN(5) {
	case 0:
		damaged[at()] ^= 1 << random.IntN(8)
	case 1:
		for range 1 + random.IntN(20) {
			damaged[at()] = byte(random.Uint32())
		}
	case 2:
		damaged = damaged[:at()]
	case 3: // replace a page by another
		from, to := at()/page*page, at()/page*page
		copy(damaged[to:min(to+page, len(damaged))], damaged[from:])
	case 4: // damage the header of a page
		damaged[min(at()/page*page+random.IntN(12), len(damaged)-1)] = byte(random.Uint32())
	}
	return damaged
}

// mutations is the number of mutations in TestMutations; NAR_HERDER_MUTATIONS sets another.
func mutations(t *testing.T) int {
	text := os.Getenv("NAR_HERDER_MUTATIONS")
	if text == "" {
		return 20
	}
	count, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// TestMutations: a damaged index or dump with a matching digest is refused, or the index
// built from it is valid.
func TestMutations(t *testing.T) {
	t.Parallel()
	var texts, want []string
	for n := range 60 {
		texts = append(texts, string(mirrortest.Narinfo(n, 1, n).Text))
		want = append(want, mirrortest.At(n).Format(time.DateTime)+" "+texts[n])
	}
	slices.Sort(want)
	newBuild := func() *build {
		return &build{log: slog.New(slog.DiscardHandler), doing: func(string) {}, now: time.Now(), fallback: time.Now()}
	}
	for name, test := range map[string]struct {
		content []byte
		build   func(ctx context.Context, name, downloaded string) error
	}{
		"index": {mirrortest.IndexCopy(t, "", texts...), func(ctx context.Context, name, downloaded string) error {
			return newBuild().fromIndex(ctx, name, os.DirFS(filepath.Dir(downloaded)), filepath.Base(downloaded))
		}},
		"dump": {mirrortest.Dump(t, hostile.Instance, texts...), func(ctx context.Context, name, downloaded string) error {
			d, err := sourcedump.Open(ctx, downloaded, true, nil)
			if err != nil {
				return err
			}
			defer d.Close()
			b := newBuild()
			if b.count, err = d.Count(ctx); err != nil {
				return err
			}
			return b.fromDump(ctx, name, d, cursor.Cursor{Since: mirrortest.At(1)})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 1))
			directory := t.TempDir()
			downloaded, made := filepath.Join(directory, "downloaded"), filepath.Join(directory, "made")
			refused, sum := 0, sumIn(t, test.content, downloaded)
			count := mutations(t)
			for n := range count + 1 {
				content := test.content
				if n > 0 {
					content = mutate(random, content)
				}
				if err := os.WriteFile(downloaded, content, 0o600); err != nil {
					t.Fatal(err)
				}
				ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
				// Without its sum, it is like an original's dump: only
				// signed bytes can be compared.
				lostSum := name == "dump" && !bytes.Contains(content, sum)
				err := test.build(ctx, made, downloaded)
				if ctx.Err() != nil {
					t.Fatalf("mutation %d: it is stuck", n)
				}
				stop()
				if err != nil {
					refused++
					if left, err := filepath.Glob(made + "*"); n == 0 || err != nil || len(left) > 0 {
						t.Errorf("mutation %d: %v leaves %q", n, err, left)
					}
					continue
				}
				if got := mirrortest.Items(t, made); !slices.Equal(got, want) && !(lostSum && isPart(got, texts)) {
					t.Errorf("mutation %d: it has %d items, which are not those that were published", n, len(got))
				}
				if err := os.Remove(made); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%d of %d were refused", refused, count)
		})
	}
}

// sumIn returns the row of a dump with its sum; nil for another file.
func sumIn(t testing.TB, content []byte, name string) []byte {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	database, err := original.Open(t.Context(), name)
	if err != nil {
		return nil
	}
	defer database.Close()
	info, err := database.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return []byte(original.SumKey + info[original.SumKey])
}

// isPart reports whether the signed bytes of the lines are part of some text.
func isPart(lines, texts []string) bool {
	for _, line := range lines {
		_, text, _ := strings.Cut(line, " StorePath")
		signed, _, _ := strings.Cut("StorePath"+text, "Signature")
		if !slices.ContainsFunc(texts, func(text string) bool { return strings.HasPrefix(text, signed+"Signature") }) {
			return false
		}
	}
	return true
}
