package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// CheckCopy looks whether a file that came from elsewhere is what [Index.Copy] of
// this program makes, or of an older one: an index with just the tables of its
// version. Nothing is changed in it or beside it. The error is [ErrNewerVersion], or
// says what else is wrong.
func CheckCopy(ctx context.Context, path string) (err error) {
	tried := "look at the copy " + path
	absolute, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("%s: %w", tried, err)
	}
	copied, err := connect(ctx, fileName(absolute)+"?mode=ro&immutable=1&_query_only=on&_pragma=trusted_schema(off)")
	if err != nil {
		return describe(tried, err)
	}
	defer func() { err = errors.Join(err, copied.close()) }()
	version, err := recognise(copied, path, len(migrations))
	if err != nil {
		return err
	}
	if version == 0 {
		return fmt.Errorf("%w: %s: it is empty", ErrForeign, tried)
	}
	// What is made here for that version.
	own, err := connect(ctx, "file::memory:")
	if err != nil {
		return describe(tried, err)
	}
	defer func() { err = errors.Join(err, own.close()) }()
	for _, step := range migrations[:version] {
		if err := own.script(step); err != nil {
			return describe(tried, err)
		}
	}
	want, err1 := own.schema()
	got, err2 := copied.schema()
	if err := errors.Join(err1, err2); err != nil {
		return describe(tried, err)
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("%w: %s: its tables are not those of schema version %d", ErrForeign, tried, version)
	}
	source, err := copied.setting(CopyInstance)
	if err == nil && source == "" {
		err = fmt.Errorf("%w: it does not say what it is a copy of", ErrForeign)
	}
	if err != nil {
		return describe(tried, err)
	}
	return nil
}

// schema is what there is in a database, in words, in order.
func (c *connection) schema() (all []string, err error) {
	err = c.rows("SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_schema", nil, func(row []driver.Value) (bool, error) {
		all = append(all, strings.Join([]string{fmt.Sprint(row[0]), fmt.Sprint(row[1]), fmt.Sprint(row[2]), fmt.Sprint(row[3])}, "\n"))
		return true, nil
	})
	slices.Sort(all)
	return all, err
}
