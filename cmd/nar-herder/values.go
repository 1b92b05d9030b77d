package main

import (
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"nar-herder/compression"
	"nar-herder/httpapi/clients"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/removal/criteria"
	"nar-herder/storage/index"
)

// The types of options. Their errors show the value and what is allowed; the parser puts the
// option's name before them.

// ttlValue is a duration as the original and Guix write it: m is a month.
type ttlValue time.Duration

func (d *ttlValue) UnmarshalText(text []byte) error {
	parsed, err := narinfo.ParseGuixDuration(string(text))
	*d = ttlValue(parsed)
	return err
}

// durationValue is a duration of a new option, which does not accept m.
type durationValue time.Duration

func (d *durationValue) UnmarshalText(text []byte) error {
	parsed, err := narinfo.ParseDuration(string(text))
	*d = durationValue(parsed)
	return err
}

// intervalValue is an interval, or zero for never.
type intervalValue time.Duration

func (i *intervalValue) UnmarshalText(text []byte) error {
	if string(text) == "none" {
		*i = 0
		return nil
	}
	parsed, err := narinfo.ParseDuration(string(text))
	if err == nil && parsed <= 0 {
		err = fmt.Errorf("invalid interval %q: want \"none\" or at least a second", text)
	}
	*i = intervalValue(parsed)
	return err
}

// sizeValue is a number of bytes, or noLimit. A small number without a unit is invalid: as a
// limit, it would remove or refuse nearly everything.
type sizeValue int64

// leastPlainSize is the least size above 0 that needs no unit.
const leastPlainSize = 64 << 10

const noLimit sizeValue = -1

var sizeForm = regexp.MustCompile(`^([0-9]+)(|B|[KMGTP](|B|iB))$`)

func (s *sizeValue) UnmarshalText(text []byte) error {
	if string(text) == "none" {
		*s = noLimit
		return nil
	}
	parts := sizeForm.FindStringSubmatch(string(text))
	if parts == nil {
		return fmt.Errorf("invalid size %q: want \"none\", or a number of bytes with an optional unit: K, M, G, T, P, KiB, MiB, GiB, TiB, PiB (powers of 1024) or KB, MB, GB, TB, PB (powers of 1000)", text)
	}
	n, err := strconv.ParseInt(parts[1], 10, 64)
	if unit := parts[2]; err == nil && unit != "" && unit != "B" {
		base := int64(1024)
		if strings.HasSuffix(unit, "B") && !strings.HasSuffix(unit, "iB") {
			base = 1000
		}
		for range strings.IndexByte("KMGTP", unit[0]) + 1 {
			if n > math.MaxInt64/base {
				err = strconv.ErrRange
				break
			}
			n *= base
		}
	}
	if err == nil && parts[2] == "" && 0 < n && n < leastPlainSize {
		return fmt.Errorf("%s lacks a unit: did you mean %[1]sG or %[1]sT, or %[1]sB for bytes?", text)
	}
	if err != nil {
		return fmt.Errorf("%q is too large: at most %d bytes", text, int64(math.MaxInt64))
	}
	*s = sizeValue(n)
	return nil
}

// portValue is a TCP port; 0 lets the system choose.
type portValue uint16

func (p *portValue) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 10, 16)
	if err != nil {
		return fmt.Errorf("invalid port %q: want 0 to 65535", text)
	}
	*p = portValue(n)
	return nil
}

// levelValue is a log level.
type levelValue slog.Level

var levels = map[string]slog.Level{"DEBUG": slog.LevelDebug, "INFO": slog.LevelInfo, "WARN": slog.LevelWarn, "ERROR": slog.LevelError}

func (l *levelValue) UnmarshalText(text []byte) error {
	level, ok := levels[strings.ToUpper(string(text))]
	if !ok {
		return fmt.Errorf("invalid log level %q: want DEBUG, INFO, WARN or ERROR", text)
	}
	*l = levelValue(level)
	return nil
}

// positiveValue is a number of at least one.
type positiveValue int

func (p *positiveValue) UnmarshalText(text []byte) error {
	n, err := strconv.Atoi(string(text))
	if err != nil || n < 1 || n > math.MaxInt32 {
		return fmt.Errorf("invalid number %q: want 1 to %d", text, math.MaxInt32)
	}
	*p = positiveValue(n)
	return nil
}

// urlValue is the URL of another instance.
type urlValue struct{ *url.URL }

func (u *urlValue) UnmarshalText(text []byte) (err error) {
	u.URL, err = peer.ParseURL(string(text))
	return err
}

// instanceValue is the URL of an instance, for lists. The URL is a field because the parser would
// call methods of an embedded one while it is nil.
type instanceValue struct{ url urlValue }

func (f *instanceValue) UnmarshalText(text []byte) error { return f.url.UnmarshalText(text) }

// criterionValue is a criterion for the removal of nars.
type criterionValue struct{ criteria.Criterion }

func (c *criterionValue) UnmarshalText(text []byte) (err error) {
	c.Criterion, err = criteria.Parse(string(text))
	return err
}

// tagValue is KEY=VALUE.
type tagValue index.Tag

func (t *tagValue) UnmarshalText(text []byte) error {
	key, value, ok := strings.Cut(string(text), "=")
	if !ok || key == "" {
		return fmt.Errorf("invalid tag %q: want KEY=VALUE", text)
	}
	*t = tagValue{Key: key, Value: value}
	return nil
}

func tags(values []tagValue) []index.Tag {
	converted := make([]index.Tag, len(values))
	for i, value := range values {
		converted[i] = index.Tag(value)
	}
	return converted
}

// compressionValue is TYPE[:LEVEL].
type compressionValue compression.Spec

func (c *compressionValue) UnmarshalText(text []byte) error {
	spec, err := compression.ParseSpec(string(text))
	*c = compressionValue(spec)
	return err
}

// decoder is a pointer to a value that can be decoded from text.
type decoder[V any] interface {
	*V
	UnmarshalText([]byte) error
}

// typed is TYPE=VALUE.
type typed[V any, P decoder[V]] struct {
	kind  string
	value V
}

func (t *typed[V, P]) UnmarshalText(text []byte) error {
	kind, value, ok := strings.Cut(string(text), "=")
	if !ok {
		return fmt.Errorf("%q lacks a type: want TYPE=VALUE", text)
	}
	if _, err := compression.ParseSpec(kind); err != nil {
		return err
	}
	t.kind = kind
	return P(&t.value).UnmarshalText([]byte(value))
}

// proxiesValue is a list of proxies: addresses, networks such as 10.0.0.0/8, "unix" or
// "none".
type proxiesValue struct{ clients.Proxies }

func (p *proxiesValue) UnmarshalText(text []byte) error {
	*p = proxiesValue{}
	for s := range strings.SplitSeq(string(text), ",") {
		if s == "none" {
			continue
		}
		if s == "unix" {
			p.Unix = true
			continue
		}
		if address, err := netip.ParseAddr(s); err == nil && address.Zone() == "" {
			p.Networks = append(p.Networks, netip.PrefixFrom(address.Unmap(), address.Unmap().BitLen()))
			continue
		}
		network, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("invalid proxy %q: want an IP address, a network such as 10.0.0.0/8, unix, or none", s)
		}
		if network != network.Masked() {
			return fmt.Errorf("invalid network %q: it has bits beyond its length: did you mean %s or %s?", s, network.Masked(), network.Addr())
		}
		p.Networks = append(p.Networks, network)
	}
	return nil
}

// proxies merges all values.
func proxies(values []proxiesValue) (all clients.Proxies) {
	for _, value := range values {
		all.Unix = all.Unix || value.Unix
		all.Networks = append(all.Networks, value.Networks...)
	}
	return all
}

// textValue is a text that is not empty.
type textValue string

func (t *textValue) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		return fmt.Errorf("the value is empty")
	}
	*t = textValue(text)
	return nil
}
