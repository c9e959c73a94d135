package main

import (
	"io"
	"math"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/proxy"
)

// endless is a lease without an end.
type endless struct{}

func (endless) Doubt() int64 { return math.MaxInt64 / 2 }
func (endless) Until() int64 { return math.MaxInt64 / 2 }

// steady is a topology that never changes.
type steady struct{ primary proxy.Primary }

func (s *steady) Current() (*proxy.Primary, <-chan struct{}) { return &s.primary, nil }

// countingDoor passes connections on to addr, and counts the bytes that each sends there.
func countingDoor(t *testing.T, addr string) (string, func() []int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var counts [64]atomic.Int64
	go func() {
		for i := 0; ; i = (i + 1) % len(counts) {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", addr)
			if err != nil {
				_ = in.Close()
				continue
			}
			go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
			go func() {
				buf := make([]byte, 4096)
				for {
					n, err := in.Read(buf)
					counts[i].Add(int64(n))
					if _, werr := out.Write(buf[:n]); err != nil || werr != nil {
						_ = out.Close()
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String(), func() (now []int64) {
		for i := range counts {
			now = append(now, counts[i].Load())
		}
		return now
	}
}

// TestStubTellsTheProxyEnough: in steady state the stub gets what the clients send and nothing
// else, or the benchmark would measure questions that no database is asked for long.
func TestStubTellsTheProxyEnough(t *testing.T) {
	addr, sent := countingDoor(t, stubFor(t))
	cfg := proxy.DefaultConfig()
	cfg.Listen = []string{"127.0.0.1:0"}
	cfg.LookupUser, cfg.LookupPassword = benchUser, benchPassword
	cfg.ShutdownTimeout = 100 * time.Millisecond
	p, err := proxy.New(cfg, proxy.Deps{Topology: &steady{proxy.Primary{Name: "stub",
		Addr: addr, Epoch: 1, Timeline: 1, Incarnation: stubIncarnation, Lease: endless{}}}})
	if err == nil {
		err = p.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	conn, r, err := dial(t.Context(), p.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := exchange(conn, r, preparedSelect.setup); err != nil {
		t.Fatal(err)
	}
	const times = 10
	want := int64(times * len(preparedSelect.request))
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		before := sent()
		for range times {
			if _, err := exchange(conn, r, preparedSelect.request); err != nil {
				t.Fatal(err)
			}
		}
		most := int64(0)
		for i, n := range sent() {
			most = max(most, n-before[i])
		}
		if most == want { // at first what functions set is not known
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d requests of %d bytes in all are %d bytes to the server", times, want, most)
		}
	}
}
