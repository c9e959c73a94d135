package election

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// TestDiskProbe: a write that hangs or finds no room makes the disk bad, and one that works again
// makes it good. That it does so on real disks is in the fault lab.
func TestDiskProbe(t *testing.T) {
	now := time.Now()
	d := diskProbe{path: filepath.Join(t.TempDir(), "probe"), limit: 10 * time.Second}
	d.once()
	if why := d.bad(now); why != "" {
		t.Errorf("a good disk: %s", why)
	}
	if info, err := os.Stat(d.path); err != nil || info.Size() != 4096 {
		t.Errorf("nothing was written: %v", err)
	}
	began := now.Add(-9 * time.Second)
	d.began.Store(&began)
	if why := d.bad(now); why != "" {
		t.Errorf("a slow write: %s", why)
	}
	began = now.Add(-11 * time.Second)
	d.began.Store(&began)
	if why := d.bad(now); why != "a write hangs for 11 s" {
		t.Errorf("a write that hangs: %q", why)
	}
	for cause, path := range map[string]string{"space": "/dev/full", "": "/nowhere/probe"} {
		d.path = path
		d.once()
		if why := d.bad(now); !strings.Contains(why, cause) || (why == "") != (cause == "") {
			t.Errorf("%s: %q, want %q", path, why, cause)
		}
	}
	d.path = filepath.Join(t.TempDir(), "probe")
	d.once()
	if why := d.bad(now); why != "" {
		t.Errorf("good again: %s", why)
	}
}

// TestDiskIsToldThoughTheSampleHangs: Status has the probe's word, not that of the last sample.
func TestDiskIsToldThoughTheSampleHangs(t *testing.T) {
	a := &PostgresAgent{changed: make(chan struct{}), log: zap.NewNop()}
	a.status = MemberStatus{Phase: PhasePrimary}
	changed := a.Changed()
	a.noteDisk("a write hangs for 11 s")
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	if st := a.Status(); st.DiskBad == "" || st.Problem == "" || st.Phase != PhasePrimary {
		t.Errorf("status %+v", st)
	}
	a.noteDisk("")
	if st := a.Status(); st.DiskBad != "" || st.Problem != "" {
		t.Errorf("status %+v", st)
	}
}
