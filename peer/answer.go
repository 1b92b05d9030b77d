package peer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"nar-herder/narinfo"
)

// maxHead bounds the bytes of an answer besides its list.
const maxHead = 64 << 10

// answer decodes JSON as a stream, one value at a time: decoded as a whole, an answer can
// need a hundred times its length.
type answer struct {
	from    *allowance
	decoder *json.Decoder
}

func newAnswer(from io.Reader) *answer {
	allowed := &allowance{r: from}
	return &answer{allowed, json.NewDecoder(allowed)}
}

// object reads an object with a list under a key. It calls element, which must read an
// element, for each one, and decodes the other fields into head unless that is nil.
func (a *answer) object(list string, head any, element func() error) error {
	if err := a.delimiter('{'); err != nil {
		return err
	}
	var others bytes.Buffer
	found := false
	for a.more() {
		token, err := a.decoder.Token()
		if err != nil {
			return asAnswer(err)
		}
		key, _ := token.(string)
		switch {
		case key == list && !found:
			if err := a.elements(element); err != nil {
				return err
			}
			found = true
			continue
		case strings.EqualFold(key, list): // the decoder ignores case
			return fmt.Errorf("%w: it has two lists", ErrAnswer)
		}
		var value json.RawMessage
		if err := a.value(&value, maxChange); err != nil {
			return err
		}
		if head == nil {
			continue
		}
		if others.Len()+len(key)+len(value) > maxHead {
			return fmt.Errorf("%w: it has over %d bytes beside %s", ErrAnswer, maxHead, list)
		}
		name, err := json.Marshal(key)
		if err != nil {
			return err
		}
		others.WriteByte(',')
		others.Write(name)
		others.WriteByte(':')
		others.Write(value)
	}
	if err := a.delimiter('}'); err != nil {
		return err
	}
	a.from.grant(maxChange)
	if _, err := a.decoder.Token(); err == nil {
		return fmt.Errorf("%w: it has more than one value", ErrAnswer)
	} else if err != io.EOF {
		return asAnswer(err)
	}
	if !found {
		return fmt.Errorf("%w: it has no %s", ErrAnswer, list)
	}
	if others.Len() == 0 {
		return nil
	}
	text := append(others.Bytes(), '}')
	text[0] = '{'
	return asAnswer(json.Unmarshal(text, head))
}

// elements calls element for each element of a list.
func (a *answer) elements(element func() error) error {
	if err := a.delimiter('['); err != nil {
		return err
	}
	for a.more() {
		if err := element(); err != nil {
			return err
		}
	}
	return a.delimiter(']')
}

// value decodes a value of up to that many bytes.
func (a *answer) value(to any, most int) error {
	a.from.grant(most)
	return asAnswer(a.decoder.Decode(to))
}

func (a *answer) more() bool {
	a.from.grant(maxChange)
	return a.decoder.More()
}

func (a *answer) delimiter(want json.Delim) error {
	a.from.grant(maxChange)
	got, err := a.decoder.Token()
	if err == nil && got != want {
		err = fmt.Errorf("%w: %v instead of %v", ErrAnswer, got, want)
	}
	return asAnswer(err)
}

// readStored reads the answer to a query for that many items.
func readStored(body []byte, items int) (StoredReply, error) {
	var reply StoredReply
	a := newAnswer(bytes.NewReader(body))
	err := a.object("nars", &reply, func() error {
		var nar StoredNar
		if err := a.value(&nar, mostAnswer); err != nil {
			return err
		}
		if len(reply.Nars) == items || len(nar.Files) > narinfo.MaxFiles {
			return fmt.Errorf("%w: it has over %d items, or over %d files of one", ErrAnswer, items, narinfo.MaxFiles)
		}
		reply.Nars = append(reply.Nars, nar)
		return nil
	})
	if err != nil && !errors.Is(err, ErrAnswer) {
		err = fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	return reply, err
}

// asAnswer marks an error of the decoder as [ErrAnswer].
func asAnswer(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	case errors.As(err, &syntax), errors.As(err, &kind):
		return fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	return err
}

// allowance is a reader that fails after the granted number of bytes. Bytes that a decoder
// has buffered don't count.
type allowance struct {
	r          io.Reader
	most, left int
}

func (a *allowance) grant(most int) { a.most, a.left = most, most }

func (a *allowance) Read(p []byte) (int, error) {
	if a.left <= 0 {
		return 0, fmt.Errorf("%w: it has a value of over %d bytes", ErrAnswer, a.most)
	}
	n, err := a.r.Read(p[:min(len(p), a.left)])
	a.left -= n
	return n, err
}
