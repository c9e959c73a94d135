package proxy

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// System calls of the loop that never wait, without a word to Go's scheduler. Each word costs more
// than most of these calls, and wakes the runtime's monitor thread, which then looks around for a
// millisecond.

// rawNow reads a clock.
func rawNow(clock int32) (int64, unix.Errno) {
	var ts unix.Timespec
	_, _, errno := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, uintptr(clock),
		uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Nano(), errno
}

// rawIO receives or sends; the descriptor need not be one that never blocks. read and write would
// cost more, and a SIGPIPE.
func rawIO(call uintptr, fd int, p []byte) (int, unix.Errno) {
	if len(p) == 0 {
		return 0, 0
	}
	for {
		n, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&p[0])),
			uintptr(len(p)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// rawPeek is what has arrived, up to len(p), without taking it.
func rawPeek(fd int, p []byte) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd),
		uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_DONTWAIT|unix.MSG_PEEK, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// epollNow takes the events that are there.
func epollNow(epoll int, out []unix.EpollEvent) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll),
		uintptr(unsafe.Pointer(&out[0])), uintptr(len(out)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// rawEpollAdd registers a descriptor.
func rawEpollAdd(epoll, fd int, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), unix.EPOLL_CTL_ADD,
		uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// rawAccept takes a connection of a listening socket that never blocks.
func rawAccept(fd int) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0,
		unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// rawClose closes a socket, which waits for nothing unless it lingers for a time.
func rawClose(fd int) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// rawRing adds one to an eventfd, rawHush sets it to zero; neither waits, since it is non-blocking.
func rawRing(fd int) {
	one := [8]byte{1} // in the byte order of little-endian machines; any number rings
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one[0])), 8)
}

func rawHush(fd int) {
	var b [8]byte
	_, _, _ = unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), 8)
}
