package election

import "golang.org/x/sys/unix"

// bootNow is CLOCK_BOOTTIME in nanoseconds: it goes on while the host sleeps, and nobody can
// step it.
func bootNow() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("BUG: CLOCK_BOOTTIME is missing: " + err.Error())
	}
	return ts.Nano()
}
