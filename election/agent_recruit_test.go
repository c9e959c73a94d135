package election_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/election"
	"holdfast/pgwire"
)

// walReceiver is the pid of a standby's walreceiver, of which there is one.
func (c *agentCluster) walReceiver(name string) int {
	c.t.Helper()
	pid, err := strconv.Atoi(c.sql(name, "SELECT pid FROM pg_stat_activity "+
		"WHERE backend_type = 'walreceiver'"))
	if err != nil {
		c.t.Fatalf("walreceiver of %s: %v", name, err)
	}
	return pid
}

// TestAgentRecruitWaitsForTheWalReceiver: a walreceiver that was told to end may have WAL in hand
// that it will write and acknowledge. As long as it lives the standby answers no position, though
// it has replayed all that was received (DESIGN 10.4).
func TestAgentRecruitWaitsForTheWalReceiver(t *testing.T) {
	c := newAgentCluster(t, 2)
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.waitStreaming("n2", "n1")
	c.sql("n1", "CREATE TABLE t (i int)")
	c.awaitReceived("n1", "n2")
	receiver := c.walReceiver("n2")
	if err := signalProcess(receiver, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goOn := func() error { return signalProcess(receiver, syscall.SIGCONT) }
	defer func() { _ = goOn() }()
	c.sql("n1", "INSERT INTO t VALUES (1)") // it has this in its socket
	end, err := pgwire.ParseLSN(c.sql("n1", "SELECT pg_current_wal_flush_lsn()"))
	if err != nil {
		t.Fatal(err)
	}
	c.epoch = 5
	o := election.Order{V: 1, Kind: election.OrderRecruit, Epoch: c.epoch, Members: c.members}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if res, err := c.agents["n2"].Do(ctx, o); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("recruited beside its walreceiver: %+v, %v", res, err)
	}
	if got := c.sql("n2", "SHOW primary_conninfo"); got != "" {
		t.Fatalf("the order did not come so far: primary_conninfo is %q", got)
	}
	if err := goOn(); err != nil {
		t.Fatal(err)
	}
	res := c.do("n2", election.Order{Kind: election.OrderRecruit})
	if got := c.sql("n2", "SELECT pg_last_wal_receive_lsn()"); got != res.LSN.String() {
		t.Errorf("recruited at %v, and received up to %s (the primary wrote up to %v)", res.LSN,
			got, end)
	}
}

// TestAgentAsksForWALSoon: a standby whose primary is away tries again after 200 ms, not after the
// 5 s of PostgreSQL's default: commits wait for it. Recruited it looks more often still, since its
// answer waits for that (DESIGN 10.11b, DESIGN.md I11).
func TestAgentAsksForWALSoon(t *testing.T) {
	c := newAgentCluster(t, 2)
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.waitStreaming("n2", "n1")
	const show = "SHOW wal_retrieve_retry_interval"
	if got := c.sql("n2", show); got != "200ms" {
		t.Errorf("a standby asks every %s", got)
	}
	c.epoch = 5
	c.do("n2", election.Order{Kind: election.OrderRecruit})
	if got := c.sql("n2", show); got != "20ms" {
		t.Errorf("a recruit asks every %s", got)
	}
	c.do("n2", election.Order{Kind: election.OrderFollow, Upstream: c.member("n1")})
	c.waitStreaming("n2", "n1")
	if got := c.sql("n2", show); got != "200ms" {
		t.Errorf("a standby that was recruited asks every %s", got)
	}
	// Whoever is promoted is a standby again one day.
	if got := c.sql("n1", show); got != "200ms" {
		t.Errorf("the primary would ask every %s", got)
	}
}

// powerDisk is a file system that can lose its power: what was not flushed is gone then.
type powerDisk struct {
	t          *testing.T
	image, dir string
}

// newPowerDisk mounts one that writes nothing by itself for longer than any test runs.
func newPowerDisk(t *testing.T, image, dir string) *powerDisk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a file system")
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs mkfs.ext4 of e2fsprogs")
		}
		t.Skip("needs mkfs.ext4 of e2fsprogs")
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Truncate(image, 32<<20), os.MkdirAll(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", image).CombinedOutput()
	if err != nil {
		t.Fatalf("make file system: %v: %s", err, out)
	}
	d := &powerDisk{t: t, image: image, dir: dir}
	d.mount()
	t.Cleanup(d.unmount)
	return d
}

func (d *powerDisk) mount() {
	d.t.Helper()
	out, err := exec.Command("mount", "-o", "loop,commit=900", d.image, d.dir).CombinedOutput()
	if err != nil {
		d.t.Fatalf("mount: %v: %s", err, out)
	}
}

// unmount waits for processes that were killed to let go of their files.
func (d *powerDisk) unmount() {
	d.t.Helper()
	var err error
	for range 100 {
		if err = unix.Unmount(d.dir, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		d.t.Errorf("unmount %s: %v", d.dir, err)
	}
}

// powerOff loses what was not flushed (EXT4_IOC_SHUTDOWN without a flush of the journal).
func (d *powerDisk) powerOff() {
	d.t.Helper()
	f, err := os.Open(d.dir)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const request, noFlush = 0x8004587D, 2
	if err := unix.IoctlSetPointerInt(int(f.Fd()), request, noFlush); err != nil {
		d.t.Fatalf("power off: %v", err)
	}
}

// TestAgentPledgeOutlivesThePower: a recruit that answered and then lost its power knows its
// pledge. Else it would stream from the old primary again, and commits that nobody else has would
// be acknowledged under an epoch that is over (DESIGN 10.4, DESIGN.md I9).
func TestAgentPledgeOutlivesThePower(t *testing.T) {
	c := newAgentCluster(t, 2)
	state := c.cfgs["n2"].DataDir + ".holdfast"
	disk := newPowerDisk(t, filepath.Join(c.dir, "disk"), state)
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.waitStreaming("n2", "n1")
	c.epoch = 5
	c.do("n2", election.Order{Kind: election.OrderRecruit})
	disk.powerOff()
	c.close("n2")
	c.killServer("n2")
	disk.unmount()
	disk.mount()
	b, err := os.ReadFile(filepath.Join(state, "agent.json"))
	if err != nil {
		t.Fatalf("the pledge is lost: %v", err)
	}
	var record struct {
		Pledged uint64 `json:"pledged"`
	}
	if err := json.Unmarshal(b, &record); err != nil || record.Pledged != 5 {
		t.Errorf("after the power came back the pledge is %d (%v): %s", record.Pledged, err, b)
	}
}
