package main_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The ioctls of file systems that x/sys does not name.
const (
	ioctlFreeze       = 0xC0045877 // FIFREEZE
	ioctlThaw         = 0xC0045878 // FITHAW
	ioctlExt4Shutdown = 0x8004587D // EXT4_IOC_SHUTDOWN
	shutdownNoFlush   = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
)

// labDisk is a small ext4 file system in a file. It is mounted in the lab's own mount namespace,
// so that nobody else sees it and it goes away with the lab's last process.
type labDisk struct {
	image, dir string
	watchdog   *labWatchdog
	filler     string
}

// newLabDisk makes and mounts it; the directory may be there already.
func newLabDisk(image, dir string, size int64) (*labDisk, error) {
	f, err := os.Create(image)
	if err != nil {
		return nil, fmt.Errorf("make disk: %w", err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, fmt.Errorf("make disk: %w", err)
	}
	out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1",
		image).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("make file system (mkfs.ext4 of e2fsprogs): %w: %s", err, out)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make disk: %w", err)
	}
	d := &labDisk{image: image, dir: dir}
	return d, d.mount()
}

// mount mounts the image; the kernel frees the loop device when it is unmounted.
func (d *labDisk) mount() error {
	out, err := exec.Command("mount", "-o", "loop", d.image, d.dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mount disk: %w: %s", err, out)
	}
	return nil
}

func (d *labDisk) ioctl(request uint, arg int) error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return unix.IoctlSetPointerInt(int(f.Fd()), request, arg)
}

// freeze makes every write hang for at most limit: a process of its own thaws then, and also when
// the test dies.
func (d *labDisk) freeze(limit time.Duration) error {
	w, err := startLabWatchdog(d.dir, limit)
	if err != nil {
		return err
	}
	if err := d.ioctl(ioctlFreeze, 0); err != nil {
		return errors.Join(fmt.Errorf("freeze %s: %w", d.dir, err), w.stop())
	}
	d.watchdog = w
	return nil
}

// thaw ends a freeze. The watchdog ends after the thaw, never before.
func (d *labDisk) thaw() error {
	if d.watchdog == nil {
		return nil
	}
	err := d.ioctl(ioctlThaw, 0)
	if err != nil {
		err = fmt.Errorf("thaw %s before its watchdog: %w", d.dir, err)
	}
	err = errors.Join(err, d.watchdog.stop())
	d.watchdog = nil
	return err
}

// fill takes all free space, blocks that only root may take included.
func (d *labDisk) fill() error {
	d.filler = filepath.Join(d.dir, "filler")
	f, err := os.Create(d.filler)
	if err != nil {
		return fmt.Errorf("fill %s: %w", d.dir, err)
	}
	defer func() { _ = f.Close() }()
	var at int64
	for step := int64(64 << 20); step >= 1024; step /= 2 {
		for unix.Fallocate(int(f.Fd()), 0, at, step) == nil {
			at += step
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		return err
	}
	// What ext4 keeps back for its own metadata nobody can have.
	if st.Bavail > 4 {
		return fmt.Errorf("fill %s: %d blocks are left", d.dir, st.Bavail)
	}
	return nil
}

// empty gives the space back.
func (d *labDisk) empty() error {
	if d.filler == "" {
		return nil
	}
	err := os.Remove(d.filler)
	d.filler = ""
	return err
}

// powerOff loses all that was not flushed: nothing is written to the image any more.
func (d *labDisk) powerOff() error {
	if err := d.ioctl(ioctlExt4Shutdown, shutdownNoFlush); err != nil {
		return fmt.Errorf("power off %s: %w", d.dir, err)
	}
	return nil
}

// powerOn mounts the disk anew; the processes that had files open there must have ended.
func (d *labDisk) powerOn() error {
	if err := d.unmount(); err != nil {
		return err
	}
	return d.mount()
}

func (d *labDisk) unmount() error {
	var err error
	for range 100 {
		if err = unix.Unmount(d.dir, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(50 * time.Millisecond) // a process that was killed lets go of its files
	}
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", d.dir, err)
	}
	return nil
}

// close leaves nothing behind; it may be called twice.
func (d *labDisk) close() error {
	return errors.Join(d.thaw(), d.unmount())
}

// labWatchdog is a process that thaws a file system: after its time, or when its standard input
// ends, which the kernel does when the test dies. It needs nothing of the frozen disk to do so.
type labWatchdog struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

const labWatchdogScript = `trap '' INT TERM HUP
echo ready
timeout "$2" cat >/dev/null
fsfreeze --unfreeze "$1" 2>/dev/null
exit 0`

func startLabWatchdog(dir string, limit time.Duration) (*labWatchdog, error) {
	cmd := exec.Command("/bin/sh", "-c", labWatchdogScript, "lab-watchdog", dir,
		fmt.Sprintf("%.0f", limit.Seconds()))
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start watchdog: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start watchdog: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start watchdog: %w", err)
	}
	w := &labWatchdog{cmd: cmd, in: in}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		return nil, errors.Join(fmt.Errorf("start watchdog: %q: %w", line, err), w.stop())
	}
	return w, nil
}

func (w *labWatchdog) stop() error {
	_ = w.in.Close()
	return w.cmd.Wait()
}
