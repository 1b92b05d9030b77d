package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"

	"nar-herder/internal/disk"
	"nar-herder/storage/importer/narinfofiles"
	"nar-herder/storage/resign"
)

// signFiles signs narinfo files. Its errors are about names that can't be read.
func signFiles(ctx context.Context, signer *resign.Signer, names []string, dryRun bool, summary *signSummary) error {
	work := make(chan narinfofiles.File)
	var workers sync.WaitGroup
	var mutex sync.Mutex // of the summary
	// More than processors, since they mostly wait for the disk.
	for range 4 * runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for file := range work {
				result := signFile(signer, file, dryRun)
				mutex.Lock()
				summary.addFile(file.Name, result)
				mutex.Unlock()
			}
		})
	}
	found := 0
	err := narinfofiles.Find(ctx, names, func(file narinfofiles.File) {
		found++
		if ctx.Err() == nil {
			work <- file
		}
	})
	close(work)
	workers.Wait()
	if err == nil && found == 0 {
		err = errors.New("no narinfos found: their names end in .narinfo")
	}
	return err
}

// signFile signs a narinfo file.
func signFile(signer *resign.Signer, file narinfofiles.File, dryRun bool) (result resign.Result) {
	// The target may be signed meanwhile, so don't depend on its signature.
	if _, err := replaceable(file.Name); err != nil {
		return resign.Result{Err: err}
	}
	n, err := file.Read()
	if err != nil {
		return resign.Result{Err: err}
	}
	signed, outcome, err := signer.Sign(n)
	if signed != nil && !dryRun {
		if err = replaceFile(file.Name, signed.Text); err != nil {
			outcome = resign.Failed
		}
	}
	return resign.Result{Hash: n.StorePath.Hash, Outcome: outcome, Narinfo: n, Err: err}
}

// signToStdout prints a narinfo file with a signature.
func signToStdout(ctx context.Context, s *streams, signer *resign.Signer, names []string, items *itemList) error {
	var files []narinfofiles.File
	if err := narinfofiles.Find(ctx, names, func(file narinfofiles.File) { files = append(files, file) }); err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	if len(files) != 1 || items != nil {
		return usagef("--stdout needs a single narinfo file")
	}
	n, err := files[0].Read()
	if err != nil {
		return fmt.Errorf("sign %s: %w", files[0].Name, err)
	}
	signed, outcome, err := signer.Sign(n)
	switch {
	case err != nil:
		return fmt.Errorf("sign %s: %w", files[0].Name, err)
	case outcome == resign.Kept:
		return fmt.Errorf("sign %s: it has a valid signature by another key, %s: use --replace", files[0].Name, presentSigner(n))
	case signed == nil:
		signed = n
	}
	_, err = s.out.Write(signed.Text)
	return err
}

// replaceable describes a file, which must not be a symbolic link.
func replaceable(name string) (fs.FileInfo, error) {
	info, err := os.Lstat(name)
	if err == nil && info.Mode()&fs.ModeSymlink != 0 {
		err = &fs.PathError{Op: "replace", Path: name, Err: errors.New("it is a symbolic link: name the file itself")}
	}
	return info, err
}

// replaceFile replaces the content of a file atomically. The file keeps its mode, and its owner
// if this process may set it.
func replaceFile(name string, text []byte) (err error) {
	info, err := replaceable(name)
	if err != nil {
		return err
	}
	directory, base := filepath.Split(name)
	// The name doesn't end in .narinfo, so that no import finds it.
	file, err := os.CreateTemp(filepath.Clean(directory), "."+base+".*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	_, err = file.Write(text)
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && err == nil {
		_ = file.Chown(int(owner.Uid), int(owner.Gid)) // mostly forbidden, and not needed then
	}
	err = errors.Join(err, file.Chmod(info.Mode().Perm()), file.Sync(), file.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(file.Name(), name); err != nil {
		return err
	}
	return disk.SyncDirectory(filepath.Dir(name))
}
