package index

import (
	"encoding/base64"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/dict"
	"github.com/klauspost/compress/zstd"
)

var train = flag.Bool("train", false, "train narinfo.dict anew and write it")

// TestTrainDictionary writes narinfo.dict when run with -train. The samples resemble the
// narinfos of the two large build farms, with their public keys. They refer to the packages
// in testdata/names.txt, which are sorted by how many packages have them as an input.
// Hashes, sizes and signatures are random, so that the dictionary contains only recurring
// text.
func TestTrainDictionary(t *testing.T) {
	if !*train {
		t.Skip("the dictionary is only trained on request, with -train")
	}
	samples := sampleNarinfos(t, 4000)
	content, err := dict.BuildZstdDict(samples, dict.Options{
		MaxDictSize: 24 << 10,
		HashBytes:   6,
		ZstdDictID:  builtinID,
		ZstdLevel:   zstd.SpeedDefault,
		Output:      nil,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("narinfo.dict", content, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", len(content))
}

const base32Alphabet = "0123456789abcdfghijklmnpqrsvwxyz"

// sampleNarinfos returns narinfos like those of a build farm, the same in each run.
func sampleNarinfos(t testing.TB, count int) [][]byte {
	t.Helper()
	list, err := os.ReadFile("testdata/names.txt")
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(string(list))
	random := rand.New(rand.NewPCG(1, 2))
	draw := func(alphabet string, n int) string {
		text := make([]byte, n)
		for i := range text {
			text[i] = alphabet[random.IntN(len(alphabet))]
		}
		return string(text)
	}
	signers := []struct{ host, q string }{
		{"bayfront", "7D602902D3A2DBB83F8A0FB98602A754C5493B0B778C8D1DD4E0F41DE14DE34F"},
		{"berlin.guix.gnu.org", "8D156F295D24B0D9A86FA5741A840FF2D24F60F7B6C4134814AD55625971B394"},
	}
	base := []string{"glibc-2.39", "gcc-11.4.0-lib", "gcc-14.3.0-lib", "bash-minimal-5.1.16", "bash-5.1.16", "glibc-2.41", "bash-minimal-5.2.37"}
	texts := make([][]byte, count)
	for i := range texts {
		pick := func() string {
			// Popularity decreases with the rank.
			rank := int(random.ExpFloat64() * random.ExpFloat64() * 120)
			return names[min(rank, len(names)-1)]
		}
		self := draw(base32Alphabet, 32) + "-" + names[random.IntN(len(names))]
		references := []string{self}
		for range int(4 + random.ExpFloat64()*14) {
			name := pick()
			if random.IntN(3) == 0 {
				name = base[random.IntN(len(base))]
			}
			references = append(references, draw(base32Alphabet, 32)+"-"+name)
		}
		slices.Sort(references)
		signer := signers[random.IntN(2)]
		signature := fmt.Sprintf("(signature \n (data \n  (flags rfc6979)\n  (hash sha256 #%s#)\n  )\n (sig-val \n  (ecdsa \n   (r #0%s#)\n   (s #0%s#)\n   )\n  )\n (public-key \n  (ecc \n   (curve Ed25519)\n   (q #%s#)\n   )\n  )\n )\n",
			draw("0123456789ABCDEF", 64), draw("0123456789ABCDEF", 63), draw("0123456789ABCDEF", 63), signer.q)
		compression := []string{"lzip", "lzip", "zstd", "gzip"}[random.IntN(4)]
		system := []string{"x86_64-linux", "x86_64-linux", "aarch64-linux", "i686-linux", "armhf-linux", "powerpc64le-linux"}[random.IntN(6)]
		texts[i] = fmt.Appendf(nil, "StorePath: /gnu/store/%s\nNarHash: sha256:%s\nNarSize: %d\nReferences: %s\nSystem: %s\nDeriver: %s-%s.drv\nSignature: 1;%s;%s\nURL: nar/%s/%s\nCompression: %s\nFileSize: %d\n",
			self, draw("01", 1)+draw(base32Alphabet, 51), random.IntN(1<<random.IntN(30)+1)*8, strings.Join(references, " "), system,
			draw(base32Alphabet, 32), self[33:], signer.host, base64.StdEncoding.EncodeToString([]byte(signature)),
			compression, self, compression, random.IntN(1<<random.IntN(28)+1))
	}
	return texts
}

// BenchmarkCompress measures the time per text and the compression ratio.
func BenchmarkCompress(b *testing.B) {
	texts := sampleNarinfos(b, 1000)
	c := testCodec(b)
	var in, out int
	for i := 0; b.Loop(); i++ {
		text := texts[i%len(texts)]
		_, compressed := c.compress(text)
		in, out = in+len(text), out+len(compressed)
	}
	b.ReportMetric(float64(out)/float64(in), "ratio")
	b.ReportMetric(float64(in)/float64(b.N), "B/text")
}

func BenchmarkDecompress(b *testing.B) {
	texts := sampleNarinfos(b, 1000)
	c := testCodec(b)
	stored := make([][]byte, len(texts))
	for i, text := range texts {
		_, stored[i] = c.compress(text)
	}
	for i := 0; b.Loop(); i++ {
		if _, err := c.decompress(builtinID, stored[i%len(stored)]); err != nil {
			b.Fatal(err)
		}
	}
}

func testCodec(b testing.TB) *codec {
	b.Helper()
	x := openTest(b)
	return x.codec
}
