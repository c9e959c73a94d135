package election

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"
)

// memoryDisk is a store without a disk.
type memoryDisk struct{ *raft.InmemStore }

func (memoryDisk) Close() error { return nil }

// fuzzFiles are what a node reads from its disk when it starts, by what reads it: each returns
// what was read, as it is written.
func fuzzFiles(dir string) []func(b []byte) ([]byte, error) {
	a := &PostgresAgent{state: dir, cfg: AgentConfig{Cluster: "x", DataDir: dir}}
	a.deps.Source = newFSM()
	endorsed := endorsementFile{path: filepath.Join(dir, "endorsed.json")}
	return []func(b []byte) ([]byte, error){
		func(b []byte) ([]byte, error) {
			if err := os.WriteFile(endorsed.path, b, 0o600); err != nil {
				return nil, err
			}
			e, _, err := endorsed.load()
			if err != nil {
				return nil, err
			}
			t, _ := TimingOf(ProfileLAN)
			v := makeVoter(e, false, nil, t, a.deps.Source, bootNow)
			if m, _ := v.memory(); m != max(e.Endorsed, e.Floor) || v.takenSet() != e.Set {
				panic("BUG: a voter forgets what its disk has")
			}
			return json.Marshal(e)
		},
		func(b []byte) ([]byte, error) {
			err := os.WriteFile(filepath.Join(dir, agentRecordName), b, 0o600)
			if err != nil {
				return nil, err
			}
			if a.rec, err = a.loadRecord(); err != nil {
				return nil, err
			}
			_, _ = a.WasMember()
			_ = a.desiredUpstream()
			return json.Marshal(a.rec)
		},
		func(b []byte) ([]byte, error) {
			a.rec = agentRecord{}
			if err := os.WriteFile(filepath.Join(dir, pgMarkerName), b, 0o600); err != nil {
				return nil, err
			}
			kind, text := a.inspectDir()
			if kind != pgDirOurs {
				return nil, os.ErrInvalid
			}
			return json.Marshal(pgMarker{V: Version, Cluster: "x", SystemID: text})
		},
		func(b []byte) ([]byte, error) {
			s := newStore(memoryDisk{raft.NewInmemStore()}, zap.NewNop())
			_ = s.diskStore.Set(regainKey, b)
			g, err := loadRegain(s, false, raftPosition{})
			if err != nil || g == nil {
				return nil, os.ErrInvalid
			}
			_ = g.waits()
			return json.Marshal(g.record())
		},
	}
}

// FuzzDiskFiles: what a node finds on its disk is an error, or a memory that is the same when it
// is written and read again.
func FuzzDiskFiles(f *testing.F) {
	record := agentRecord{V: 1, Cluster: "x", SystemID: "7", Pledged: 3, Upstream: &fuzzMembers[1],
		Result: &OrderResult{V: 1, LSN: 9}, Members: fuzzMembers, Lost: &LostSummary{}}
	for i, v := range []any{
		endorsement{V: 1, Endorsed: 3, Floor: 4, Set: 2, Recovered: 1}, record,
		pgMarker{V: 1, Cluster: "x", SystemID: "7"}, regainRecord{V: 1, Asked: true, Term: 5},
	} {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
		f.Add(uint8(i), b[:len(b)-1])
		f.Add(uint8(i), make([]byte, len(b))) // as after a power loss
		f.Add(uint8(i), []byte(`{"v":2,"cluster":"x"}`))
		f.Add(uint8(i), []byte("null"))
	}
	files := fuzzFiles(f.TempDir())
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		read := files[int(which)%len(files)]
		once, err := read(b)
		if err != nil {
			return
		}
		twice, err := read(once)
		if err != nil || string(twice) != string(once) {
			t.Errorf("%q was read as %s, and that as %s, %v", b, once, twice, err)
		}
	})
}
