package check

import (
	"context"
	"time"

	"nar-herder/internal/pace"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

const (
	// suspectPause is the wait before a check that can't lock the index looks again at
	// suspect files: longer than a transaction usually takes.
	suspectPause = time.Second
	// mostSuspects is how many files are looked at again after one pause.
	mostSuspects = 1000
)

// suspects are files of a check that seem wrong. They are looked at again after a pause:
// without a lock of the index, a file that another process is adding or removing seems wrong
// too, because its row and its bytes don't change at once.
type suspects struct {
	c     *Checker
	yield func(Finding, error) bool
	files []suspect
}

type suspect struct {
	hash narinfo.PathHash
	name string
}

// report is [Checker.report] for later.
func (l *suspects) report(ctx context.Context, hash narinfo.PathHash, name string) bool {
	l.files = append(l.files, suspect{hash, name})
	return len(l.files) < mostSuspects || l.flush(ctx)
}

// flush looks at all of them again. It returns false when the check is over.
func (l *suspects) flush(ctx context.Context) bool {
	if len(l.files) == 0 {
		return true
	}
	if err := pace.Sleep(ctx, suspectPause); err != nil {
		l.yield(Finding{}, err)
		return false
	}
	for _, file := range l.files {
		finding := Finding{Name: file.name}
		err := l.c.index.View(ctx, func(tx *index.Tx) (err error) {
			finding, err = l.c.compare(ctx, tx, file.hash, file.name)
			return err
		})
		if !l.c.found(ctx, finding, err, l.yield) {
			return false
		}
	}
	l.files = l.files[:0]
	return true
}
