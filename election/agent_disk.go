package election

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// diskProbeInterval is the time between two writes of the probe.
const diskProbeInterval = time.Second

// diskProbe finds out whether the data disk still takes writes: a primary whose disk hangs or is
// full answers queries and acknowledges nothing, and sees no error itself for as long as the disk
// hangs (DESIGN 5). One write is under way at a time; one that hangs is never abandoned for
// another. The file is beside the data directory, where clones are made: on the same disk, and not
// in base backups.
type diskProbe struct {
	path  string
	limit time.Duration // how long a write may take before the disk counts as bad

	// began is when the write under way began, nil if there is none. It keeps its monotonic part:
	// a wall clock that is stepped makes no disk hang (DESIGN.md I69).
	began atomic.Pointer[time.Time]
	fails atomic.Pointer[string]
}

// write makes one durable write.
func (d *diskProbe) write() error {
	f, err := os.OpenFile(d.path,
		os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_DSYNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 4096))
	return errors.Join(err, f.Close())
}

// diskSpaceMin is how little space counts as none.
const diskSpaceMin = 128 << 10

// noSpace tells that PostgreSQL finds no space, which this process may still do: it writes over
// blocks that it has, and root may take those that are kept for it.
func noSpace(dir string) *string {
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil || fs.Blocks == 0 {
		return nil
	}
	left := fs.Bavail * uint64(fs.Bsize)
	if left >= diskSpaceMin {
		return nil
	}
	text := fmt.Sprintf("no space left on device (%d KiB)", left>>10)
	return &text
}

// once takes one probe; the caller waits for it.
func (d *diskProbe) once() {
	now := time.Now()
	d.began.Store(&now)
	err := d.write()
	var why *string
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EIO) ||
		errors.Is(err, unix.EROFS) {
		text := err.Error()
		why = &text
	}
	if why == nil && err == nil {
		why = noSpace(filepath.Dir(d.path))
	}
	// Other errors (no file descriptors, no directory yet) are none of the disk.
	d.fails.Store(why)
	d.began.Store(nil)
}

// bad tells why the disk takes no writes; "" if it does.
func (d *diskProbe) bad(now time.Time) string {
	if began := d.began.Load(); began != nil {
		if took := now.Sub(*began); took > d.limit {
			return fmt.Sprintf("a write hangs for %d s", int(took.Seconds()))
		}
	}
	if why := d.fails.Load(); why != nil {
		return *why
	}
	return ""
}

// runDisk probes until ctx ends. The goroutine of a write that hangs ends with the write.
func (a *PostgresAgent) runDisk(ctx context.Context) {
	done := make(chan struct{}, 1)
	done <- struct{}{}
	t := time.NewTicker(diskProbeInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		select {
		case <-done:
			a.wg.Add(1)
			go func() {
				defer a.wg.Done()
				a.disk.once()
				done <- struct{}{}
			}()
		default:
		}
		a.noteDisk(a.disk.bad(time.Now()))
	}
}

// noteDisk wakes whoever waits for a change when the disk turns bad or good.
func (a *PostgresAgent) noteDisk(bad string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := a.diskBad
	a.diskBad = bad
	if (was == "") == (bad == "") {
		return
	}
	if bad != "" {
		a.log.Warn("data disk takes no writes", zap.String("why", bad))
	} else {
		a.log.Info("data disk takes writes again")
	}
	close(a.changed)
	a.changed = make(chan struct{})
}
