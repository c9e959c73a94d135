package election

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// The server's log is postgresql.log in StatePath. pg_ctl's shell opens it with >>, and the
// postmaster and all its children keep that file open for as long as they live: it cannot be
// changed for another one, but with O_APPEND each write goes to what is the end then, so that the
// file may be cut under it.
const (
	logName    = "postgresql.log"
	logOldName = logName + ".1"
)

func (a *PostgresAgent) logFile() string { return filepath.Join(a.state, logName) }

// logTick is the time between two looks at the size of the server's log.
const logTick = 5 * time.Second

// runLog keeps the server's log within its bound until ctx ends.
func (a *PostgresAgent) runLog(ctx context.Context) {
	t := time.NewTicker(logTick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := a.trimLog(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("the server's log cannot be cut", zap.String("file", a.logFile()),
				zap.Error(err))
		}
	}
}

// moveLog moves a log that is over its bound away, before a server starts.
func (a *PostgresAgent) moveLog() {
	if !a.logMu.TryLock() {
		return // it is being cut
	}
	defer a.logMu.Unlock()
	info, err := os.Stat(a.logFile())
	if err == nil && info.Size() > int64(a.cfg.LogBytesMax) {
		_ = os.Rename(a.logFile(), filepath.Join(a.state, logOldName))
	}
}

// trimLog moves what is in a log that has reached its bound to postgresql.log.1, or drops it if
// there is no room for that. It belongs to the goroutine of runLog.
func (a *PostgresAgent) trimLog(ctx context.Context) error {
	a.logMu.Lock()
	defer a.logMu.Unlock()
	// PostgreSQL's account owns the directory, and this process may be root: nothing outside it,
	// and nobody else's file, may be reached through what that account puts there.
	dir, err := os.OpenRoot(a.state)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	f, err := dir.OpenFile(logName, os.O_RDWR|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a server that was adopted may log elsewhere
	} else if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || info.Size() <= int64(a.cfg.LogBytesMax) {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.Mode().IsRegular() ||
		int(st.Uid) != a.account.uid || st.Nlink != 1 {
		return fmt.Errorf("it is no file that is %s's alone", a.account.name)
	}
	old, err := a.makeOldLog(dir, info.Size())
	if err == nil {
		defer func() { _ = old.Close() }()
		err = copyLog(ctx, old, io.NewSectionReader(f, 0, info.Size()))
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		_ = dir.Remove(logOldName)
		a.log.Warn("the server's log is cut without a copy", zap.String("file", a.logFile()),
			zap.Int64("bytes", info.Size()), zap.Error(err))
		return f.Truncate(0)
	}
	return cutLog(f, old, info.Size())
}

// makeOldLog makes the file for the copy of that many bytes in the place of the former one. A copy
// must not fill the disk, on which PostgreSQL's data may be: twice its size has to be free.
func (a *PostgresAgent) makeOldLog(dir *os.Root, size int64) (*os.File, error) {
	if err := dir.Remove(logOldName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(a.state, &st); err != nil {
		return nil, err
	}
	if left := st.Bavail * uint64(st.Bsize); left < 2*uint64(size)+a.logSpare {
		return nil, fmt.Errorf("%d MiB are free: %w", left>>20, unix.ENOSPC)
	}
	old, err := dir.OpenFile(logOldName, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil && a.account.cred != nil {
		err = old.Chown(a.account.uid, a.account.gid)
	}
	return old, err
}

// copyLog copies in pieces, so that Close need not wait for the whole.
func copyLog(ctx context.Context, to io.Writer, from io.Reader) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := io.CopyN(to, from, 4<<20); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// cutLog takes the first size bytes, which were copied, out of the log. Where the file system can
// take blocks out of a file, no line is lost. Else the rest is copied, too, and the file cut to
// nothing: a line that is written between these two is lost.
func cutLog(f, old *os.File, size int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return err
	}
	whole := (size - 1) / st.Bsize * st.Bsize // the last block cannot be taken out
	if unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, whole) == nil {
		return old.Truncate(whole)
	}
	if _, err := f.Seek(size, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.Copy(old, f); err != nil {
		return errors.Join(err, f.Truncate(0))
	}
	return f.Truncate(0)
}
