package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ClusterNode is one node of a Cluster: a `holdfast serve` process and the PostgreSQL server that
// it controls, which outlives it.
type ClusterNode struct {
	// Name is the node's name in the group.
	Name string
	// Host is the node's own loopback address.
	Host string
	// Dir holds the node's files; DataDir below it is PGDATA.
	Dir, DataDir string
	// TokenFile is that of its HTTP interface.
	TokenFile string
	// ConfigPath and LogPath are the node's configuration and its log.
	ConfigPath, LogPath string
	// Raft, Postgres, Proxy and HTTP are the node's listeners, host:port.
	Raft, Postgres, Proxy, HTTP string

	cluster *Cluster

	mu   sync.Mutex
	proc *nodeProcess // the newest, ended or not; nil before the first start
}

// nodeProcess is one run of the binary; the goroutine that waits for it closes done.
type nodeProcess struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait; read after done
}

func newClusterNode(c *Cluster, name, host string, ports nodePorts) *ClusterNode {
	dir := filepath.Join(c.Dir, name)
	return &ClusterNode{
		Name: name, Host: host, Dir: dir, DataDir: filepath.Join(dir, "pg", "data"),
		TokenFile:  filepath.Join(dir, "http-token"),
		ConfigPath: filepath.Join(dir, "holdfast.yaml"), LogPath: filepath.Join(dir, "log"),
		Raft: hostPort(host, ports.raft), Postgres: hostPort(host, ports.postgres),
		Proxy: hostPort(host, ports.proxy), HTTP: hostPort(host, ports.http),
		cluster: c,
	}
}

// Start runs the node in a process group of its own, where Ctrl-C does not reach it.
func (n *ClusterNode) Start() error {
	return n.start(exec.Command(n.cluster.cfg.Binary, "serve", "-c", n.ConfigPath))
}

// StartUnder runs the node by another program, which gets the node's command line as its last
// arguments.
func (n *ClusterNode) StartUnder(program string, args ...string) error {
	args = append(slices.Clone(args), n.cluster.cfg.Binary, "serve", "-c", n.ConfigPath)
	return n.start(exec.Command(program, args...))
}

func (n *ClusterNode) start(cmd *exec.Cmd) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc != nil && !n.proc.hasEnded() {
		return fmt.Errorf("start %s: it runs already", n.Name)
	}
	log, err := os.OpenFile(n.LogPath, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	cmd.Dir, cmd.Env = n.Dir, nodeEnv()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = n.cluster.inside(n.Name, cmd.Start)
	_ = log.Close() // the process has its own
	if err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	p := &nodeProcess{cmd: cmd, done: make(chan struct{})}
	n.proc = p
	go p.wait()
	return nil
}

func (p *nodeProcess) wait() {
	p.err = p.cmd.Wait()
	close(p.done)
}

func (p *nodeProcess) hasEnded() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (n *ClusterNode) process() *nodeProcess {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proc
}

// Running tells whether the node's process lives.
func (n *ClusterNode) Running() bool {
	p := n.process()
	return p != nil && !p.hasEnded()
}

// Pid is the node's process id; 0 if it does not run.
func (n *ClusterNode) Pid() int {
	if p := n.process(); p != nil && !p.hasEnded() {
		return p.cmd.Process.Pid
	}
	return 0
}

// join waits for the process, which somebody else has ended.
func (n *ClusterNode) join() error {
	p := n.process()
	if p == nil {
		return nil
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(reapTimeout):
		return fmt.Errorf("wait for %s: it does not end", n.Name)
	}
}

// Signal signals the node's process only.
func (n *ClusterNode) Signal(sig syscall.Signal) error {
	p := n.process()
	if p == nil || p.hasEnded() {
		return fmt.Errorf("signal %s: it does not run", n.Name)
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", n.Name, err)
	}
	return nil
}

// Wait waits until the node's process ends and returns its exit code, -1 if a signal ended it.
func (n *ClusterNode) Wait(ctx context.Context) (int, error) {
	p := n.process()
	if p == nil {
		return 0, fmt.Errorf("wait for %s: it does not run", n.Name)
	}
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for %s: %w", n.Name, ctx.Err())
	}
}

// Terminate ends the node in an orderly way, as systemd would with KillMode=process, and returns
// its exit code. PostgreSQL lives on.
func (n *ClusterNode) Terminate(ctx context.Context) (int, error) {
	if err := n.Signal(unix.SIGTERM); err != nil {
		return 0, err
	}
	return n.Wait(ctx)
}

// Postmaster is the pid of the node's PostgreSQL server, 0 if none runs.
func (n *ClusterNode) Postmaster() int {
	pid, _ := postmasterFile(n.DataDir)
	if pid == 0 {
		return 0
	}
	if _, ok := lookAtProcess(pid, n.DataDir, []string{"postgres"}); !ok {
		return 0
	}
	return pid
}

// KillPostmaster kills the server's main process; its children notice by themselves.
func (n *ClusterNode) KillPostmaster() error {
	pid := n.Postmaster()
	if pid == 0 {
		return fmt.Errorf("kill postmaster of %s: none runs", n.Name)
	}
	return signalUnder(process{pid: pid}, n.DataDir, []string{"postgres"}, unix.SIGKILL)
}

// StopImmediately does what `pg_ctl stop -m immediate` does, behind the group's back.
func (n *ClusterNode) StopImmediately() error {
	pid := n.Postmaster()
	if pid == 0 {
		return fmt.Errorf("stop server of %s: none runs", n.Name)
	}
	return signalUnder(process{pid: pid}, n.DataDir, []string{"postgres"}, unix.SIGQUIT)
}

// KillNode kills the node and every PostgreSQL process of its data directory, as a power cut
// would. The node stays away until Start.
func (n *ClusterNode) KillNode(ctx context.Context) error {
	if err := n.Signal(unix.SIGKILL); err != nil {
		return err
	}
	if err := endAll(n.Dir, postgresNames(), 0); err != nil {
		return err
	}
	_, err := n.Wait(ctx)
	return err
}

// FreezeServer stops all processes of the server (SIGSTOP): it holds its connections and answers
// nothing, as a hung machine would. ThawServer lets them go on.
func (n *ClusterNode) FreezeServer() error {
	return n.signalServer(unix.SIGSTOP, func(p process) bool { return p.state == 'T' })
}

// ThawServer ends what FreezeServer began.
func (n *ClusterNode) ThawServer() error {
	return n.signalServer(unix.SIGCONT, func(p process) bool { return p.state != 'T' })
}

// signalServer signals until a look at all processes finds each as it should be.
func (n *ClusterNode) signalServer(sig syscall.Signal, isDone func(process) bool) error {
	programs := []string{"postgres"}
	for range 100 {
		left := 0
		for _, p := range processesUnder(n.DataDir, programs) {
			if isDone(p) {
				continue
			}
			left++
			if err := signalUnder(p, n.DataDir, programs, sig); err != nil {
				return err
			}
		}
		if left == 0 {
			return nil
		}
		time.Sleep(5 * time.Millisecond) // half a second in all
	}
	return fmt.Errorf("signal server of %s: its processes do not take it", n.Name)
}

// LogTail is the end of the node's log, for an error message.
func (n *ClusterNode) LogTail(lines int) string {
	b, err := os.ReadFile(n.LogPath)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
