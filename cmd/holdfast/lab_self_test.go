package main_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestE2ELabNetwork holds the router's delay, loss and cuts against what was asked of it.
func TestE2ELabNetwork(t *testing.T) {
	needCluster(t)
	if !enterLab(t) {
		return
	}
	here := &labHost{name: labClient, addrs: labAddrs(labClientAddr)}
	there := &labHost{name: "node1", addrs: labAddrs(fmt.Sprintf(labNodeAddr, 1),
		fmt.Sprintf(labProxyAddr, 1))}
	n, err := newLabNet(here, there)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.close(); err != nil {
			t.Error(err)
		}
	}()
	e := startLabEcho(t, there)
	if got, _ := e.ask(t, 50); got != 50 {
		t.Errorf("%d of 50 answers without any fault", got)
	}
	n.set("node1", labClient, labLink{delay: 60 * time.Millisecond, jitter: 20 * time.Millisecond})
	got, times := e.ask(t, 100)
	if first, last := times[0], times[len(times)-1]; got != 100 || first < 40*time.Millisecond ||
		last < 65*time.Millisecond || last > 200*time.Millisecond {
		t.Errorf("delay 60 +/- 20 ms: %d of 100 answers after %v to %v", got, first, last)
	}
	n.set("node1", labClient, labLink{loss: 0.4})
	if got, _ := e.ask(t, 500); got < 240 || got > 360 {
		t.Errorf("loss 40 %%: %d of 500 answers", got)
	}
	n.set("node1", labClient, labLink{drop: func(p labPacket) bool {
		return p.src == netip.MustParseAddr(fmt.Sprintf(labNodeAddr, 1))
	}})
	if got, _ := e.ask(t, 20); got != 0 || e.heard() != 20 {
		t.Errorf("cut one way: %d answers to %d questions that arrived", got, e.heard())
	}
	n.heal()
	if got, _ := e.ask(t, 20); got != 20 {
		t.Errorf("%d of 20 answers after the faults", got)
	}
}

// labEcho answers datagrams from another namespace.
type labEcho struct {
	addr  string
	count chan int
}

func startLabEcho(t *testing.T, h *labHost) *labEcho {
	t.Helper()
	var conn net.PacketConn
	e := &labEcho{addr: net.JoinHostPort(h.addrs[0].String(), "9000"), count: make(chan int, 1)}
	err := h.inside(func() (err error) {
		conn, err = net.ListenPacket("udp", e.addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	e.count <- 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			size, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			e.count <- <-e.count + 1
			_, _ = conn.WriteTo(buf[:size], from)
		}
	}()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	return e
}

// heard is how many questions arrived since the last call of ask began.
func (e *labEcho) heard() int {
	n := <-e.count
	e.count <- n
	return n
}

// ask sends n datagrams and returns how many answers came, and when, in order.
func (e *labEcho) ask(t *testing.T, n int) (int, []time.Duration) {
	t.Helper()
	<-e.count
	e.count <- 0
	conn, err := net.Dial("udp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	begin := make(map[byte]time.Time)
	for i := range n {
		begin[byte(i)] = time.Now()
		if _, err := conn.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Microsecond) // a burst would overflow the device's queue
	}
	if err := conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	times := make([]time.Duration, 0, n)
	buf := make([]byte, 16)
	for len(times) < n {
		if _, err := conn.Read(buf); err != nil {
			break
		}
		times = append(times, time.Since(begin[buf[0]]))
	}
	slices.Sort(times)
	return len(times), times
}

// TestE2ELabDisk freezes, fills and cuts the power of a disk, and leaves it to the watchdog to
// thaw one.
func TestE2ELabDisk(t *testing.T) {
	needCluster(t)
	if !enterLab(t) {
		return
	}
	dir := t.TempDir()
	d, err := newLabDisk(filepath.Join(dir, "image"), filepath.Join(dir, "disk"), labRaftDisk)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}()
	write := func(name string) error {
		return os.WriteFile(filepath.Join(d.dir, name), make([]byte, 8192), 0o600)
	}
	if err := d.freeze(2 * time.Second); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := write("frozen"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < time.Second || took > 4*time.Second {
		t.Errorf("a write took %v on a disk that the watchdog thaws after 2 s", took)
	}
	if err := d.thaw(); err == nil {
		t.Error("nobody says that the watchdog was first")
	}
	if err := d.fill(); err != nil {
		t.Fatal(err)
	}
	if err := write("full"); err == nil {
		t.Error("a write went well on a full disk")
	}
	if err := d.empty(); err != nil {
		t.Fatal(err)
	}
	unix.Sync()
	if err := write("lost"); err != nil {
		t.Fatal(err)
	}
	if err := errorsOf(d.powerOff(), d.powerOn()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(d.dir, "lost")); err == nil {
		t.Error("what was not flushed is there after a loss of power")
	}
	if _, err := os.Stat(filepath.Join(d.dir, "frozen")); err != nil {
		t.Error(err)
	}
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// labTraces is what a lab tells its parent that it made.
type labTraces struct {
	Dir  string
	Pids []int
}

// TestE2ELabLeavesNothing kills a lab with SIGKILL while a data disk and a Raft disk are frozen:
// no process, no file system, no loop device, no directory may be left.
func TestE2ELabLeavesNothing(t *testing.T) {
	needCluster(t)
	if os.Getenv(labInside) == t.Name() {
		freezeAndWait(t)
		return
	}
	cmd := labCommand(t.Name(), "HOLDFAST_BINARY="+buildBinary(t))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var traces labTraces
	err = startLabCommand(cmd, func() error {
		if err := cmd.Start(); err != nil {
			return err
		}
		for in := bufio.NewScanner(out); in.Scan(); {
			t.Log(in.Text())
			if text, ok := strings.CutPrefix(in.Text(), "TRACES "); ok {
				if err := json.Unmarshal([]byte(text), &traces); err != nil {
					return err
				}
				break
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			return err
		}
		_ = cmd.Wait() // it was killed
		return nil
	})
	if err != nil {
		t.Fatalf("this machine cannot run the fault lab: %v", err)
	}
	if traces.Dir == "" {
		t.Fatal("the lab did not come up")
	}
	deadline := time.Now().Add(30 * time.Second)
	left := "not looked yet"
	for left != "" && time.Now().Before(deadline) {
		time.Sleep(100 * time.Millisecond) // until the deadline at most
		left = traces.left()
	}
	if left != "" {
		t.Error("left behind: " + left)
	}
}

// freezeAndWait is the lab that is killed.
func freezeAndWait(t *testing.T) {
	l, err := startLab(t, os.Getenv("HOLDFAST_BINARY"), labKind{profile: "cloud"})
	if err != nil {
		t.Fatal(err)
	}
	traces := labTraces{Dir: l.cluster.Dir}
	for _, n := range l.cluster.Nodes {
		traces.Pids = append(traces.Pids, n.Pid(), n.Postmaster())
	}
	for _, d := range []*labDisk{l.data["node1"], l.raft["node2"]} {
		if err := d.freeze(time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	text, err := json.Marshal(traces)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\nTRACES %s\n", text)
	time.Sleep(time.Minute) // until it is killed
}

// left says what is still there of a lab; empty if nothing is.
func (l labTraces) left() string {
	if _, err := os.Stat(l.Dir); err == nil {
		return "directory " + l.Dir
	}
	for _, pid := range l.Pids {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.Contains(string(cmdline), l.Dir) {
			return fmt.Sprintf("process %d: %q", pid, cmdline)
		}
	}
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err.Error()
	}
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && strings.Contains(string(text), l.Dir) {
			return "loop device " + f
		}
	}
	return ""
}
