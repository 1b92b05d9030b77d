package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
	"nar-herder/storage"
	"nar-herder/storage/importer/narinfofiles"
	"nar-herder/storage/importer/source"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
	"nar-herder/storage/resign"
)

type verifyCommand struct {
	databaseOption `embed:""`

	Storage string `group:"storage" placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars. Without it, the nars of store paths are not read."`

	keyOptions `embed:""`

	JSON  bool     `group:"output" name:"json" help:"Print each result as a line of JSON, with the whole key."`
	Names []string `arg:"" name:"file-or-store-path" help:"Narinfo files, directories to search for narinfo files, or items of the index: store paths, their base names, or their hashes."`
}

// Help is shown below the options.
func (verifyCommand) Help() string {
	return `Shows for each narinfo whether its signature is that of its text, by whom it is, and whether the signing key is authorized with --acl or --authorized-key; and whether its nars are right: they are decompressed and compared with its NarHash. The nars of a file are looked for where 'import' looks. Nothing changes.

Verdicts on narinfos:

    valid        the signature belongs to the text
    unsigned     there is no signature
    invalid      the signature, or the text, was damaged or changed; or it is not a narinfo that could be imported
    damaged      a narinfo with a wrong checksum in the index
    unknown      it could not be read, or signatures of this kind can't be verified here

Verdicts on nars:

    right        it has the NarHash of the narinfo
    wrong        it does not, has the wrong size, or is missing although the index records it as stored
    absent       it is not stored here, or not beside the file
    unread       it is stored, but --storage is missing
    unknown      it could not be read

An argument that begins with /gnu/store/ is an item, and so is a hash or the base name of a store path; others are files. The name of the signer is part of the signature, but not signed.

Exit status: 0, all signatures are valid and by authorized keys, if any are given, and no nar is wrong; 1, something is wrong; 2, something could not be checked.`
}

// Verdicts, as in the help.
const (
	verdictValid    = "valid"
	verdictUnsigned = "unsigned"
	verdictInvalid  = "invalid"
	verdictDamaged  = "damaged"
	verdictUnknown  = "unknown"
	verdictRight    = "right"
	verdictWrong    = "wrong"
	verdictAbsent   = "absent"
	verdictUnread   = "unread"
)

// verifiedLine is the result for a narinfo in JSON.
type verifiedLine struct {
	Name      string `json:"name"` // of the file, or as the item was named
	StorePath string `json:"store_path,omitempty"`
	Withdrawn bool   `json:"withdrawn,omitempty"`
	Verdict   string `json:"verdict"`
	Reason    string `json:"reason,omitempty"`
	Signer    string `json:"signer,omitempty"`
	Key       string `json:"key,omitempty"`
	// Authorized is missing if no keys are given, or if there is no key in the signature.
	Authorized *bool             `json:"authorized,omitempty"`
	Nars       []verifiedNarLine `json:"nars"`
}

type verifiedNarLine struct {
	URL         string `json:"url"`
	Compression string `json:"compression"`
	Verdict     string `json:"verdict"`
	Bytes       int64  `json:"bytes,omitempty"`    // as stored
	NarHash     string `json:"nar_hash,omitempty"` // if it is right
	Reason      string `json:"reason,omitempty"`
}

// status returns the exit status for a result.
func (l *verifiedLine) status() (status statusError) {
	worse := func(verdict string) {
		switch verdict {
		case verdictUnknown:
			status = statusUnknown
		case verdictUnsigned, verdictInvalid, verdictDamaged, verdictWrong:
			status = max(status, statusFailed)
		}
	}
	worse(l.Verdict)
	for _, nar := range l.Nars {
		worse(nar.Verdict)
	}
	if l.Authorized != nil && !*l.Authorized {
		status = max(status, statusFailed)
	}
	return status
}

func (c *verifyCommand) Run(ctx context.Context, s *streams) error {
	keys, err := c.keys()
	if err != nil {
		return unknownError{err}
	}
	v := &verifying{verifyCommand: c, keys: keys}
	defer func() {
		if v.store != nil {
			_ = v.store.close() // it was only read
		}
	}()
	if slices.Contains(c.Names, "") {
		return usagef("verify: the name of a file or store path is empty")
	}
	status := statusError(0)
	report := func(line *verifiedLine) {
		status = max(status, line.status())
		v.print(s.out, line)
	}
	for _, name := range c.Names {
		if isItem(name) {
			line, err := v.item(ctx, s, name)
			if err != nil {
				return unknownError{fmt.Errorf("verify: %w", err)}
			}
			report(line)
			continue
		}
		found := 0
		err := narinfofiles.Find(ctx, []string{name}, func(file narinfofiles.File) {
			found++
			if ctx.Err() == nil {
				report(v.file(ctx, file))
			}
		})
		switch {
		case ctx.Err() != nil:
			return unknownError{errors.New("verify: interrupted")}
		case errors.Is(err, os.ErrNotExist) && found == 0:
			err = fmt.Errorf("%w, and not a store path", err)
		case err == nil && found == 0:
			err = fmt.Errorf("%s: no narinfos found: their names end in .narinfo", name)
		}
		if err != nil {
			status = statusUnknown
			printf(s.err, "nar-herder: verify: %v\n", err)
		}
	}
	if status != 0 {
		return status
	}
	return nil
}

// isItem reports whether an argument of verify or sign is an item, not a file.
func isItem(name string) bool {
	if strings.HasPrefix(name, narinfo.StoreDir+"/") {
		return true
	}
	_, err := parseItem(name)
	return err == nil && !strings.HasSuffix(name, ".narinfo")
}

// verifying is a run of verify.
type verifying struct {
	*verifyCommand
	keys  *signing.Keys // nil for none
	store *opened       // nil until it is needed
}

// narinfo judges the signature of a narinfo.
func (v *verifying) narinfo(line *verifiedLine, n *narinfo.Narinfo) {
	line.StorePath = n.StorePath.String()
	line.Signer = resign.Host(n)
	var err error
	if line.Key, err = n.SigningKey(); err == nil && v.keys != nil {
		authorized := v.keys.Contains(line.Key)
		line.Authorized = &authorized
	}
	err = n.CheckSignature(nil)
	switch {
	case err == nil:
		line.Verdict = verdictValid
		if line.Authorized != nil && !*line.Authorized {
			err = n.CheckSignature(v.keys)
		}
	case errors.Is(err, narinfo.ErrUnsigned):
		line.Verdict = verdictUnsigned
	case errors.Is(err, signing.ErrUnknownAlgorithm):
		line.Verdict = verdictUnknown
	default:
		line.Verdict = verdictInvalid
	}
	if err != nil && line.Verdict != verdictUnsigned {
		line.Reason = oneLine(err)
	}
}

// item verifies an item of the index.
func (v *verifying) item(ctx context.Context, s *streams, name string) (*verifiedLine, error) {
	hash, err := parseItem(name)
	if err != nil {
		return nil, usageError{err}
	}
	if v.store == nil {
		log := slog.New(newLogHandler(s.err, slog.LevelWarn))
		if v.store, err = openForReading(ctx, v.Database, v.Storage, log); err != nil {
			return nil, err
		}
	}
	for tries := 1; ; tries++ {
		line, item, err := v.itemOnce(ctx, name, hash)
		if err != nil || item == nil || line.status() == 0 || tries == verifyTries {
			return line, err
		}
		// An import may have replaced the narinfo or a nar meanwhile.
		now, err := v.store.Item(ctx, hash)
		if err == nil && bytes.Equal(now.Text, item.Text) && now.Stored == item.Stored {
			return line, nil
		}
	}
}

// verifyTries is how often an item is verified that changes meanwhile.
const verifyTries = 3

// itemOnce verifies an item as the index has it at first. The item is nil if it can't be read.
func (v *verifying) itemOnce(ctx context.Context, name string, hash narinfo.PathHash) (*verifiedLine, *storage.Item, error) {
	line := &verifiedLine{Name: name, Nars: []verifiedNarLine{}}
	item, err := v.store.Item(ctx, hash)
	switch {
	case errors.Is(err, index.ErrDamaged):
		line.Verdict, line.Reason = verdictDamaged, oneLine(err)
		return line, nil, nil
	case errors.Is(err, storage.ErrNotFound):
		line.Verdict, line.Reason = verdictUnknown, oneLine(err)
		return line, nil, nil
	case err != nil:
		return nil, nil, err
	}
	line.Withdrawn = !item.WithdrawnAt.IsZero()
	v.narinfo(line, item.Narinfo)
	for n, file := range item.Narinfo.Files {
		nar := verifiedNarLine{URL: file.URL, Compression: file.Compression}
		switch {
		case !item.HasStored(n):
			nar.Verdict = verdictAbsent
		case v.Storage == "":
			nar.Verdict = verdictUnread
		default:
			reader, info, err := v.store.OpenFile(ctx, item, n, 0, -1)
			if errors.Is(err, storage.ErrMismatch) {
				nar.Verdict, nar.Reason = verdictWrong, oneLine(err)
			} else {
				v.nar(ctx, &nar, item.Narinfo, n, reader, info.Size, err)
			}
		}
		if ctx.Err() != nil {
			return nil, nil, errors.New("interrupted")
		}
		line.Nars = append(line.Nars, nar)
	}
	return line, item, nil
}

// nar judges the Nth nar of a narinfo. err is that of opening it.
func (v *verifying) nar(ctx context.Context, nar *verifiedNarLine, n *narinfo.Narinfo, file int, reader io.ReadCloser, size int64, err error) {
	if err == nil {
		nar.Bytes = size
		err = narcheck.Check(ctx, n, file, reader, decodeNar)
		reader.Close()
	}
	switch {
	case err == nil:
		nar.Verdict, nar.NarHash = verdictRight, n.NarHash.String()
		return
	case errors.Is(err, narcheck.ErrWrongNar):
		nar.Verdict = verdictWrong
	default:
		nar.Verdict = verdictUnknown
	}
	nar.Reason = oneLine(err)
}

// file verifies a narinfo file.
func (v *verifying) file(ctx context.Context, file narinfofiles.File) *verifiedLine {
	line := &verifiedLine{Name: file.Name, Nars: []verifiedNarLine{}}
	n, err := file.Read()
	if err != nil {
		line.Verdict, line.Reason = verdictInvalid, oneLine(err)
		var failure *os.PathError
		if errors.As(err, &failure) {
			line.Verdict = verdictUnknown
		}
		return line
	}
	v.narinfo(line, n)
	for i := range n.Files {
		nar := verifiedNarLine{URL: n.Files[i].URL, Compression: n.Files[i].Compression, Verdict: verdictAbsent}
		if name := storage.NarName(n.Files[i], n.StorePath.Hash); name != "" {
			v.narBeside(ctx, &nar, n, i, file.Places(name))
		}
		line.Nars = append(line.Nars, nar)
	}
	return line
}

// narBeside judges the Nth nar of a narinfo file in the first place that has it.
func (v *verifying) narBeside(ctx context.Context, nar *verifiedNarLine, n *narinfo.Narinfo, file int, places []source.Place) {
	for _, place := range places {
		found, err := place.Open(-1)
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			v.nar(ctx, nar, n, file, nil, 0, err)
			return
		}
		if want := n.Files[file].Size; want >= 0 && found.Size != want {
			found.Close()
			nar.Verdict, nar.Bytes = verdictWrong, found.Size
			nar.Reason = fmt.Sprintf("%s has %d bytes, the narinfo says %d", place, found.Size, want)
			return
		}
		v.nar(ctx, nar, n, file, found, found.Size, nil)
		return
	}
}
