package main

import (
	"encoding"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

func TestValues(t *testing.T) {
	t.Parallel()
	day := 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"0s": 0, "5min": 5 * time.Minute, "1m": 30 * day, "2mo": 60 * day,
	} {
		var got ttlValue
		if err := got.UnmarshalText([]byte(text)); err != nil || time.Duration(got) != want {
			t.Errorf("duration %s: %v, %v, want %v", text, time.Duration(got), err, want)
		}
	}
	for text, want := range map[string]int64{
		"none": -1, "0": 0, "123B": 123, "65536": 65536, "8K": 8192, "1B": 1, "1K": 1024, "1KiB": 1024, "1KB": 1000, "2M": 2 << 20, "3GiB": 3 << 30, "4T": 4 << 40, "5TB": 5e12,
		"1PiB": 1 << 50, "9223372036854775807": math.MaxInt64, "8191P": 8191 << 50,
	} {
		var got sizeValue
		if err := got.UnmarshalText([]byte(text)); err != nil || int64(got) != want {
			t.Errorf("size %s: %d, %v, want %d", text, got, err, want)
		}
	}
	for text, want := range map[string]compressionValue{"zstd": {"zstd", 3}, "zstd:22": {"zstd", 22}, "lzip:0": {"lzip", 0}, "gzip:9": {"gzip", 9}, "lzip": {"lzip", 6}} {
		var got compressionValue
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("compression %s: %v, %v, want %v", text, got, err, want)
		}
	}
	var criterion criterionValue
	if err := criterion.UnmarshalText([]byte("stored-on=https://x.example/guix")); err != nil || criterion.String() != "stored-on=https://x.example/guix" {
		t.Errorf("criterion: %v, %v", criterion, err)
	}
	var tag tagValue
	if err := tag.UnmarshalText([]byte("a=b=c")); err != nil || tag != (tagValue{"a", "b=c"}) {
		t.Errorf("tag: %v, %v", tag, err)
	}
	if err := tag.UnmarshalText([]byte("a=")); err != nil || tag != (tagValue{"a", ""}) {
		t.Errorf("tag without a value: %v, %v", tag, err)
	}

	for _, test := range []struct {
		value encoding.TextUnmarshaler
		texts []string
	}{
		{new(ttlValue), []string{"", "5", "5y", "-5s", "5s\n", "3559m"}},
		{new(durationValue), []string{"", "5", "5m", "none"}},
		{new(intervalValue), []string{"", "5", "5m", "0s"}},
		{new(sinceValue), []string{"", "5", "5m", "2024-02-30"}},
		{new(sizeValue), []string{"", "1", "9", "65535", "K", "1k", "1 K", "-1", "+1", "1.5G", "1E", "1Ki", "None", "9223372036854775808", "8192P", "9999999999999T"}},
		{new(portValue), []string{"", "x", "-1", "65536", "1.0", "0x1", " 1"}},
		{new(positiveValue), []string{"", "0", "-1", "2147483648", "x", "1.5"}},
		{new(levelValue), []string{"", "TRACE", "INFO ", "1"}},
		{new(urlValue), []string{"", "x", "//x", "ftp://x", "http:", "http://", "http:///path", "http://[", "https://x y/", "http://x?y", "http://x#y"}},
		{new(criterionValue), []string{"", "stored-on", "stored-on=", "Stored-On=http://x", "http://x", "stored-on=http://x?y"}},
		{new(tagValue), []string{"", "=", "=x", "x"}},
		{new(compressionValue), []string{"", "none", "zstd:0", "zstd:23", "zstd:", "lzip:-1", "lzip:10", "gzip:0", "gzip:10", "zstd:1:1", ":3"}},
		{new(typed[sizeValue, *sizeValue]), []string{"", "zstd", "zstd=", "=1", "xz=1", "zstd=x"}},
		{new(textValue), []string{""}},
	} {
		for _, text := range test.texts {
			if err := test.value.UnmarshalText([]byte(text)); err == nil {
				t.Errorf("%T takes %q", test.value, text)
			} else if strings.Contains(err.Error(), "\n") {
				t.Errorf("%T: %q: %v", test.value, text, err)
			}
		}
	}
}

func TestParseItem(t *testing.T) {
	t.Parallel()
	for _, name := range []string{greeting, greeting[:32], greeting[:32] + ".narinfo", "/gnu/store/" + greeting, "/gnu/store/" + greeting[:32]} {
		if got, err := parseItem(name); err != nil || got.String() != greeting[:32] {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "x", "/gnu/store/", "/gnu/store/" + greeting + "/bin", "/nix/store/" + greeting, greeting[:31], "../" + greeting} {
		if _, err := parseItem(name); err == nil {
			t.Errorf("%q is taken", name)
		}
	}
}

func TestByteCount(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 40: "1.0 TiB", math.MaxInt64: "8.0 EiB"} {
		if got := byteCount(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestOneLine(t *testing.T) {
	t.Parallel()
	if got := oneLine(errors.Join(errors.New("a\nb"), errors.New("c"))); got != "a; b; c" {
		t.Errorf("%q", got)
	}
}
