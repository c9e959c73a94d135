package election

import "golang.org/x/sys/unix"

// KillServerForTest ends a server and all that is left of it.
func KillServerForTest(pid int, dataDir string) {
	if live, _, _ := pgPostmaster(dataDir); live == pid {
		pgSignal(pid, unix.SIGKILL, dataDir)
	}
	for range 100 {
		pids, _ := pgOrphans(dataDir)
		if len(pids) == 0 {
			return
		}
		for _, p := range pids {
			pgSignal(p, unix.SIGKILL, dataDir)
		}
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 1e7}, nil)
	}
}
