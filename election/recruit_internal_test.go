package election

import (
	"os"
	"path/filepath"
	"testing"
)

// The WAL file of a timeline that pg_rewind gave up stays, its history does not: a standby that
// took it for its own would never be chosen again.
func TestWALTimelineIsOneOfItsHistory(t *testing.T) {
	a := &PostgresAgent{cfg: AgentConfig{DataDir: t.TempDir()}}
	wal := filepath.Join(a.cfg.DataDir, "pg_wal")
	if err := os.Mkdir(wal, 0o700); err != nil {
		t.Fatal(err)
	}
	put := func(names ...string) {
		for _, n := range names {
			if err := os.WriteFile(filepath.Join(wal, n), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	const in3 = 3<<24 + 100
	put("000000010000000000000003", "000000020000000000000002", "000000020000000000000003")
	if tl := a.walTimeline(in3); tl != 1 {
		t.Errorf("timeline %d, whose history is not there", tl)
	}
	put("00000002.history")
	if tl := a.walTimeline(in3); tl != 2 {
		t.Errorf("timeline %d, want 2", tl)
	}
	put("0000000A.history", "0000000A0000000000000003")
	if tl := a.walTimeline(in3); tl != 10 {
		t.Errorf("timeline %d, want 10", tl)
	}
	if tl := a.walTimeline(4<<24 + 1); tl != 0 {
		t.Errorf("timeline %d of a position that no file holds", tl)
	}
}
