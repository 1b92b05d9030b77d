package importer

import (
	"context"
	"errors"
	"fmt"
	"io"

	"nar-herder/storage/bytestore"
	"nar-herder/storage/importer/narinfofiles"
	"nar-herder/storage/importer/source"
	"nar-herder/storage/narcheck"
)

// Nars says what an import does with the nars that it finds outside of the storage.
type Nars int

const (
	// ByLayout is Link for a cache of 'guix publish', which may be in use, and Move for all
	// others.
	ByLayout Nars = iota
	// Move moves files into the storage, and copies those that it can't move safely.
	Move
	// Copy copies files.
	Copy
	// Link adds hard links to files, and copies those that it can't link. It depends on their
	// owner to never change them, but to replace them by other files.
	Link
)

// nars returns what to do with the files of the addition.
func (a *Addition) nars() Nars {
	switch {
	case a.Keep:
		return Copy
	case a.Nars == ByLayout && a.PublishCache != "":
		return Link
	case a.Nars == ByLayout:
		return Move
	}
	return a.Nars
}

// places returns where the nar with a name in storages may be.
func (a *Addition) places(name string) []source.Place {
	return narinfofiles.Places(name, a.Directories, a.PublishCache)
}

// stageFrom stages the Nth file from outside the storage. The error is [fs.ErrNotExist] if
// there is no such file.
func (im *Importer) stageFrom(ctx context.Context, p *prepared, n int, name string, place source.Place) (size int64, err error) {
	file, err := place.Open(p.Narinfo.Files[n].Size)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	if err := im.MayAdd(ctx, p.replaces); err != nil {
		return 0, err
	}
	room, err := im.ReserveBelowLimit(ctx, file.Size)
	if err != nil {
		return 0, err
	}
	p.releases = append(p.releases, room.Release)
	nars := p.nars()
	if nars == Move && file.IsInUse {
		nars = Copy
		im.logOnce(place.Directory + " is a storage or an export: its nars are copied, not moved")
	}
	if nars == Link || nars == Move && !file.IsLink {
		// A shared file takes no more room, but nothing is added below the minimum.
		if err := room.Share(ctx); err != nil {
			return 0, err
		}
		sharing := ctx
		if nars == Link {
			sharing = bytestore.TrustOwners(ctx)
		}
		p.staged[n], err = im.bytes.StageFile(sharing, name, file.File, file.Size)
		if err != nil && !errors.Is(err, bytestore.ErrCantShare) {
			return 0, err
		}
		if err != nil && nars == Link && !im.IsRemote() {
			im.logOnce("nars of "+place.Directory+" can't be linked into the storage, and are copied", "error", err)
		}
		// Only now, as nobody can write to it any more.
		if err == nil && p.Decode != nil {
			if err := p.verify(ctx, n, io.NewSectionReader(file, 0, file.Size), p.Decode); err != nil {
				return 0, fmt.Errorf("%s: %w", place, err)
			}
		}
	}
	if p.staged[n] == nil {
		if err := room.Write(ctx); err != nil {
			return 0, err
		}
		if p.Decode == nil {
			p.staged[n], err = im.bytes.Stage(ctx, name, file.File, file.Size)
		} else if p.staged[n], err = im.stageVerified(ctx, p, n, name, file.File, file.Size); errors.Is(err, narcheck.ErrWrongNar) || errors.Is(err, narcheck.ErrUnreadable) {
			err = fmt.Errorf("%s: %w", place, err)
		}
		if err != nil {
			return 0, err
		}
		room.SetWritten(file.Size)
	}
	if nars == Move {
		p.moved = append(p.moved, place)
	}
	return file.Size, nil
}

// logOnce logs a warning once for each message.
func (im *Importer) logOnce(message string, more ...any) {
	if _, logged := im.logged.LoadOrStore(message, true); !logged {
		im.log.Warn(message, more...)
	}
}
