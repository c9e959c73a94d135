package proxy_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy/proxytest"
)

// strike is a fault in a conversation: at a message that the line passes on, or at a moment.
type strike struct {
	*fault
	at     int // number of the message, -1 never
	toward bool
	inside int           // so many bytes of it pass; used by faults that cut inside
	after  time.Duration // used by faults that come at a moment

	took  time.Duration // how long the conversation was
	whole func() int    // atoms that the client has sent
	mu    sync.Mutex
	seen  [2]int        // messages to the client, to the server
	isHit bool          // the fault has come
	hit   chan struct{} // closed then
	begun chan struct{} // closed when what comes first of it has happened
	what  string        // the message
	// isOver tells that the proxy has logged in again: what passes then is of another connection.
	isOver    bool
	delivered []string
	forwarded int
	sent      int
	arrived   int
	queries   []string
	last      byte
}

func (k *strike) String() string {
	way := "to the client"
	if k.toward {
		way = "to the server"
	}
	return fmt.Sprintf("%s at %d %s (%s), inside %d, after %v", k.name, k.at, way, k.what, k.inside,
		k.after)
}

// tap is what watches the line for it.
func (k *strike) tap() proxytest.Tap { return proxytest.Tap{Before: k.before, After: k.passed} }

// before counts a message, and is the fault if it comes with this one. A fault that takes its time
// holds the message, so that the conversation is not over before.
func (k *strike) before(toServer bool, typ byte, body []byte) int {
	n, isHit := k.look(toServer, typ, body)
	if isHit && k.first != nil {
		<-k.begun
	}
	return n
}

// look tells how much of a message passes, and whether the fault comes with it.
func (k *strike) look(toServer bool, typ byte, body []byte) (int, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.isOver = k.isOver || k.isHit && !toServer && typ == 'R'
	if k.isOver {
		return -1, false
	}
	dir := 0
	if toServer {
		dir = 1
		k.forwarded = k.whole()
		k.last = typ
		if typ == 'Q' {
			k.sent++
			k.queries = append(k.queries, strings.TrimRight(string(body), "\x00"))
		}
	}
	n := k.seen[dir]
	k.seen[dir]++
	if k.isHit || toServer != k.toward || n != k.at {
		return -1, false
	}
	k.what = fmt.Sprintf("%c %.60q", typ, body)
	k.strikes()
	switch {
	case k.fault.inside:
		return 1 + k.inside%(pgwire.HeaderLen+len(body)-1), true
	case k.cuts:
		return 0, true
	}
	return -1, true
}

// strikes says that the fault comes now; the caller holds k.mu.
func (k *strike) strikes() {
	k.isHit = true
	close(k.hit)
}

// passed keeps what has come to the proxy.
func (k *strike) passed(toServer bool, typ byte, body []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.isOver:
		return
	case toServer:
		if typ == 'Q' {
			k.arrived++
		}
		return
	}
	switch typ {
	case 'N', 'S', 'A':
		return
	case 'E':
		k.delivered = append(k.delivered, "E "+string(pgwire.ErrorCode(body)))
	default:
		k.delivered = append(k.delivered, fmt.Sprintf("%c %q", typ, body))
	}
}

// struck is what a client of the proxy sees with that fault.
func (s *randomStage) struck(c *conversation, k *strike) randomHeard {
	s.t.Helper()
	w, params := s.open(false)
	k.hit, k.begun = make(chan struct{}), make(chan struct{})
	k.whole = func() int { return int(s.whole.Load()) }
	s.whole.Store(0)
	s.line.Tap(k.tap())
	over := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		if k.isMoment {
			select {
			case <-time.After(k.after):
				k.mu.Lock()
				k.strikes()
				k.mu.Unlock()
				s.line.Cut()
			case <-over:
			}
			return
		}
		select {
		case <-k.hit:
			if k.first != nil {
				k.first(s.rig)
			}
			close(k.begun)
			if k.happens != nil {
				k.happens(s.rig)
			}
		case <-over:
			close(k.begun)
		}
	})
	begun := time.Now()
	h := randomHeard{atoms: s.play(w, c.atoms, params), params: params}
	k.took = time.Since(begun)
	close(over)
	work.Wait()
	s.line.Tap(proxytest.Tap{})
	if k.restarts && k.isHit {
		_ = s.admin.Close(context.Background())
	}
	h.tables = s.done(w)
	if k.behind != nil && k.isHit {
		k.behind()
	}
	return h
}

// The faults of the table. Those of drivers_test.go and TestCutAnywhere are the same but for what
// the table has to know of them.
var (
	matrixCut    = &fault{name: "connection cut", cuts: true}
	matrixInside = &fault{name: "cut inside a message", inside: true}
	matrixMoment = &fault{name: "cut at a moment", async: true, isMoment: true,
		drops: true}
	matrixLease = &fault{name: faultLease.name, happens: faultLease.happens, harmless: true}
	matrixCrash = &fault{name: faultCrash.name, cuts: true, happens: faultCrash.happens,
		restarts: true, drops: true}
	matrixStop = &fault{name: faultStop.name, async: true, restarts: true, drops: true,
		first: func(r *rig) { r.server.Stop("immediate") }, happens: func(r *rig) {
			r.proxy.Cut(r.epoch)
			r.server.Start()
			next := r.server.NextXID()
			r.lead(next, next)
		}}
	matrixRestart = &fault{name: "restart", happens: faultPatient.happens, harmless: true,
		restarts: true}
)

// matrixFaults are the faults of the table that a rig with one server can have.
var matrixFaults = []*fault{matrixCut, matrixInside, matrixMoment, matrixLease, matrixCrash,
	matrixStop, matrixRestart}

// rounds are a stage with a standby for which commits wait, and to which the primary changes: each
// time to the other server.
type rounds struct {
	*randomStage
	standby *proxytest.Server
	other   *proxytest.Line
}

func newRounds(s *randomStage) *rounds {
	s.t.Helper()
	r := &rounds{randomStage: s, standby: s.server.StartStandby(s.t)}
	r.other = proxytest.NewLine(s.t, fmt.Sprintf("127.0.0.1:%d", r.standby.Port))
	r.server.Replicate()
	return r
}

// promote makes the standby the primary. Commits wait for nobody until the other one follows it.
func (r *rounds) promote() {
	r.standby.Promote()
	r.server, r.standby = r.standby, r.server
	r.line, r.other = r.other, r.line
	next := r.server.NextXID()
	r.lead(next, next)
}

// switchover is one to the standby. The old primary follows the new one when it is over.
func (r *rounds) switchover() *fault {
	return &fault{name: "switchover", harmless: true, restarts: true,
		happens: func(*rig) {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			r.proxy.Drain(ctx, r.epoch)
			r.proxy.Cut(r.epoch)
			r.server.Exec("CHECKPOINT")
			r.server.Follow(r.standby)
			r.server.Exec("ALTER SYSTEM RESET synchronous_standby_names") // for when it leads again
			r.server.Stop("fast")
			r.promote()
		},
		behind: func() {
			r.standby.Rejoin(r.server)
			r.server.Replicate()
		},
	}
}

// failover is the death of all processes of the primary, and its standby in its place: that has all
// that was acknowledged, and of what was not, whatever had come there.
func (r *rounds) failover() *fault {
	return &fault{name: "kill -9, standby promoted", cuts: true, restarts: true, drops: true,
		happens: func(*rig) {
			r.proxy.Cut(r.epoch)
			r.server.KillAll()
			r.promote()
		},
		behind: func() {
			r.standby.CloneOf(r.server)
			r.server.Replicate()
		},
	}
}

// strikesOf draws at what messages, or moments, a fault comes in a conversation that has so many
// messages in each direction and takes so long.
func strikesOf(f *fault, messages [2]int, took time.Duration, most int, rng *rand.Rand) []*strike {
	var out []*strike
	if most < 0 {
		return nil
	}
	if f.isMoment {
		for range max(most, 1) {
			out = append(out, &strike{fault: f, at: -1,
				after: time.Duration(rng.Int64N(int64(took) + 1))})
		}
		return out
	}
	for dir, n := range messages {
		all := rng.Perm(n)
		if most > 0 {
			all = all[:min(n, most)]
		}
		for _, at := range all {
			out = append(out, &strike{fault: f, at: at, toward: dir == 1, inside: rng.IntN(1 << 20)})
		}
	}
	return out
}
