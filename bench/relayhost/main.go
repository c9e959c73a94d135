package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"holdfast/proxy"
)

// forever is a lease whose end nobody lives to see; there is room to add to it.
type forever struct{}

const farAway = math.MaxInt64 / 2

// Doubt implements proxy.Lease.
func (forever) Doubt() int64 { return farAway }

// Until implements proxy.Lease.
func (forever) Until() int64 { return farAway }

// fixed is a topology that never changes.
type fixed struct {
	primary proxy.Primary
	changed chan struct{}
}

// Current implements proxy.Topology.
func (f *fixed) Current() (*proxy.Primary, <-chan struct{}) { return &f.primary, f.changed }

func main() {
	backend := flag.String("backend", "", "the primary's address")
	incarnation := flag.String("incarnation", "1", "the start of the primary's postmaster")
	user := flag.String("lookup-user", "bench", "who asks for secrets")
	password := flag.String("lookup-password", "bench", "that user's password")
	set := flag.String("set", "{}", "fields of proxy.Config, as JSON")
	flag.Parse()
	cfg := proxy.DefaultConfig()
	cfg.Listen = []string{"127.0.0.1:0"}
	cfg.LookupUser, cfg.LookupPassword = *user, *password
	dec := json.NewDecoder(bytes.NewReader([]byte(*set)))
	dec.DisallowUnknownFields()
	err := dec.Decode(&cfg)
	if err == nil {
		err = run(cfg, *backend, *incarnation)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "relayhost: %v\n", err)
		os.Exit(1)
	}
}

// run serves until it is told to end; it prints its addresses once they can be connected to.
func run(cfg proxy.Config, backend, incarnation string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	logs := zap.NewProductionConfig()
	logs.Level = zap.NewAtomicLevelAt(zap.ErrorLevel)
	logger, err := logs.Build()
	if err != nil {
		return err
	}
	p, err := proxy.New(cfg, proxy.Deps{
		Topology: &fixed{changed: make(chan struct{}), primary: proxy.Primary{Name: "bench",
			Addr: backend, Epoch: 1, Timeline: 1, Incarnation: incarnation, Lease: forever{}}},
		Log: logger,
	})
	if err != nil {
		return err
	}
	if err := p.Start(ctx); err != nil {
		return err
	}
	for _, a := range p.Addrs() {
		fmt.Println(a)
	}
	<-ctx.Done()
	return p.Close()
}
