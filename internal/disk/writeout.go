package disk

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// writeOutEvery is how often WriteOut starts to write files to the disk.
const writeOutEvery = time.Second

// WriteOut makes the kernel write growing files to the disk once a second, until stop is
// called. Otherwise the final fsync may write gigabytes, during which the process can't be
// killed.
func WriteOut(names ...string) (stop func()) {
	done := make(chan struct{})
	go func() {
		ticker := time.NewTicker(writeOutEvery)
		defer ticker.Stop()
		files := make(map[string]*os.File)
		defer func() {
			for _, file := range files {
				file.Close()
			}
		}()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
			}
			for _, name := range names {
				if files[name] == nil {
					file, err := os.Open(name)
					if err != nil {
						continue // it doesn't exist yet
					}
					files[name] = file
				}
				// The writer of the file gets errors from its Sync.
				_ = unix.SyncFileRange(int(files[name].Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
			}
		}
	}()
	return func() { close(done) }
}
