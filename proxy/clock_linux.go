package proxy

import "golang.org/x/sys/unix"

// bootNow is CLOCK_BOOTTIME in nanoseconds, the clock of leases: it goes on while the host
// sleeps, and nobody can step it.
func bootNow() int64 {
	now, errno := rawNow(unix.CLOCK_BOOTTIME)
	if errno != 0 {
		panic("BUG: CLOCK_BOOTTIME is missing: " + errno.Error())
	}
	return now
}
