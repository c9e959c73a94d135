package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

const (
	// prewarmAtOnce is how many logins are made ahead at the same time: the target replays the old
	// primary's WAL meanwhile, and other proxies log in there too.
	prewarmAtOnce = 4
	// prewarmLeft is how long after the change a connection waits for its session. DROP DATABASE
	// waits for five seconds that others leave (databases.go), and a look comes every second.
	prewarmLeft = 3 * time.Second
)

// prewarm logs sessions in ahead on the target of a planned change, while their clients work on the
// old primary (DESIGN.md I30). Its connections are spare ones, keyed as those of the pool are, and
// idle; whoever takes one has it prove that it is one to the new primary before anything else is
// believed. Safe for concurrent use. It owns its goroutines.
type prewarm struct {
	proxy   *Proxy
	targets Targets
	work    sync.WaitGroup
	size    atomic.Int64 // len(all), for who wants to know only that

	mu      sync.Mutex
	target  *Target // whose server the connections are to; nil: there are none
	leaveAt int64   // bootNow from which all are closed; 0: the change is not over
	all     map[*prewarmed]struct{}
	ready   map[poolKey][]*prewarmed
	closed  bool
}

// prewarmed is a connection that waits, and the handler of its socket; the book's lock guards it.
type prewarmed struct {
	book  *prewarm
	key   poolKey
	b     *backend
	isOut bool // taken, or closed
}

func newPrewarm(p *Proxy, targets Targets) *prewarm {
	return &prewarm{
		proxy: p, targets: targets, all: make(map[*prewarmed]struct{}),
		ready: make(map[poolKey][]*prewarmed),
	}
}

// start follows the targets until the proxy ends, or begins to.
func (w *prewarm) start() {
	if w.targets != nil && w.proxy.cfg.PrewarmMax > 0 {
		w.work.Go(func() { w.run(w.proxy.doors) })
	}
}

func (w *prewarm) run(ctx context.Context) {
	defer w.close()
	var now *Target
	stop := func() {}
	for {
		next, news := w.targets.Next()
		if next != now {
			stop()
			now, stop = next, w.turn(ctx, next)
		}
		select {
		case <-ctx.Done():
			stop()
			return
		case <-news:
		}
	}
}

// turn begins to log in on another target; stop ends that and waits. With none, what there is is of
// use if the change has led there.
func (w *prewarm) turn(ctx context.Context, t *Target) (stop func()) {
	pr, _ := w.proxy.topo.Current()
	w.mu.Lock()
	defer w.mu.Unlock()
	if t == nil && w.leadsTo(pr) {
		w.leaveAt = bootNow() + int64(prewarmLeft)
		return func() {}
	}
	w.closeLocked(func(*prewarmed) bool { return true })
	w.target, w.leaveAt = t, 0
	if t == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.round(ctx, cancel, t)
	}()
	return func() { cancel(); <-done }
}

// leadsTo tells that the change to the target was made. The caller holds w.mu.
func (w *prewarm) leadsTo(pr *Primary) bool {
	t := w.target
	return t != nil && pr != nil && pr.Name == t.Name && pr.Addr == t.Addr && pr.Epoch > t.Epoch
}

// prewarmFor is a session for which a connection is made, as far as that depends on it.
type prewarmFor struct {
	account  *account
	loop     *loop
	hasLocks bool
	quietFor time.Duration
}

// choose returns the sessions that a connection is of most use for: all others wait for those with
// advisory locks, and whose client has just asked is likely to do so again.
func (w *prewarm) choose(t *Target) []prewarmFor {
	var out []prewarmFor
	for _, s := range w.proxy.all() {
		s.mu.Lock()
		c := prewarmFor{account: s.account, loop: s.loop, hasLocks: s.hasLocks}
		stays := s.backend != nil && s.backend.primary.Epoch == t.Epoch && !s.closing &&
			!s.backend.streams && s.track.unmovable&^reasonTemp == 0 && !s.account.isApart
		s.mu.Unlock()
		if stays && !c.account.asksForWrites() {
			c.quietFor = quietFor(s.client)
			out = append(out, c)
		}
	}
	slices.SortStableFunc(out, func(a, b prewarmFor) int {
		switch {
		case a.hasLocks != b.hasLocks && a.hasLocks:
			return -1
		case a.hasLocks != b.hasLocks:
			return 1
		}
		return int(a.quietFor/time.Millisecond) - int(b.quietFor/time.Millisecond)
	})
	return out[:min(len(out), w.proxy.cfg.PrewarmMax)]
}

// asksForWrites tells that the startup packet sets transaction_read_only, which a standby refuses
// (0A000). default_transaction_read_only it takes.
func (a *account) asksForWrites() bool {
	return slices.ContainsFunc(a.login, func(p pgwire.Param) bool {
		text := strings.ToLower(p.Name + " " + p.Value)
		return strings.Contains(strings.ReplaceAll(text, "default_transaction_read_only", ""),
			"transaction_read_only")
	})
}

// round makes the connections, as long as clients work on the old primary: what competes with the
// drain and the promotion makes everybody wait.
func (w *prewarm) round(ctx context.Context, cancel func(), t *Target) {
	all := w.choose(t)
	var next, made atomic.Int64
	var refused sync.Map // of *account
	var workers sync.WaitGroup
	var why atomic.Pointer[error]
	for range min(prewarmAtOnce, len(all)) {
		workers.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(all) || ctx.Err() != nil || w.proxy.isDraining(t.Epoch) {
					return
				}
				if _, skip := refused.Load(all[i].account); skip {
					continue
				}
				err := w.make(ctx, t, all[i])
				switch {
				case err == nil:
					made.Add(1)
				case ctx.Err() != nil:
					return
				case isServerAway(err) && !isServerFull(err): // nobody gets in
					why.Store(&err)
					cancel()
				default:
					why.Store(&err)
					refused.Store(all[i].account, true)
				}
			}
		})
	}
	workers.Wait()
	if len(all) == 0 {
		return
	}
	fields := []zap.Field{zap.String("target", t.Name), zap.Int64("made", made.Load()),
		zap.Int("wanted", len(all))}
	if err := why.Load(); err != nil {
		fields = append(fields, zap.Error(*err))
	}
	w.proxy.log.Info("connections for a planned change were made ahead", fields...)
}

// make makes one connection. It is nobody's error if it does not come about.
func (w *prewarm) make(ctx context.Context, t *Target, f prewarmFor) error {
	p := w.proxy
	if !p.accounts.hold(f.account) {
		return nil // the session is gone
	}
	defer p.accounts.release(f.account)
	pr := &Primary{Name: t.Name, Addr: t.Addr, Epoch: t.Epoch}
	b, err := p.logInTo(ctx, f.loop, pr, func(b *backend, opts pgwire.LoginOptions) error {
		return b.loginAhead(f.account.login, f.account.cred, opts)
	})
	if err != nil {
		if ctx.Err() == nil {
			w.count("refused")
		}
		return err
	}
	key := poolKey{
		loop: f.loop, login: f.account.key, secret: string(f.account.cred.ServerKey),
	}
	w.put(t, key, b)
	return nil
}

func (w *prewarm) count(result string) {
	w.proxy.metrics.prewarmed.WithLabelValues(result).Inc()
}

// put takes over a connection to the target.
func (w *prewarm) put(t *Target, key poolKey, b *backend) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count("made")
	c := &prewarmed{book: w, key: key, b: b}
	if w.closed || w.target != t || len(w.all) >= w.proxy.cfg.PrewarmMax {
		w.count("closed")
		b.close(true)
		return
	}
	w.all[c] = struct{}{}
	w.ready[key] = append(w.ready[key], c)
	w.changed()
	b.relayFromHere()
	b.conn.handle(c)
	key.loop.post(c) // for what came before it was watched
}

// take gives away a connection to pr, which has to prove that it is one; nil if there is none. The
// caller owns it.
func (w *prewarm) take(key poolKey, pr *Primary) *backend {
	if w.size.Load() == 0 {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.leadsTo(pr) {
		return nil
	}
	for list := w.ready[key]; len(list) > 0; list = w.ready[key] {
		c := list[len(list)-1]
		if c.b.primary.Incarnation != pr.Incarnation || len(c.b.in.bytes()) > 0 {
			w.drop(c, "stale") // another start of the server, or it is in the middle of a word
			continue
		}
		w.forget(c)
		c.b.conn.handle(nil)
		c.b.in.release()
		c.b.primary = pr
		return c.b
	}
	return nil
}

// forget takes a connection out of the books. The caller holds w.mu.
func (w *prewarm) forget(c *prewarmed) {
	c.isOut = true
	delete(w.all, c)
	list := w.ready[c.key]
	if i := slices.Index(list, c); i >= 0 {
		list = slices.Delete(list, i, i+1)
	}
	if w.ready[c.key] = list; len(list) == 0 {
		delete(w.ready, c.key)
	}
	w.changed()
}

func (w *prewarm) changed() {
	w.size.Store(int64(len(w.all)))
	w.proxy.metrics.prewarmedNow.Set(float64(len(w.all)))
}

// drop closes a connection, on which nothing is outstanding. The caller holds w.mu.
func (w *prewarm) drop(c *prewarmed, why string) {
	if c.isOut {
		return
	}
	w.forget(c)
	w.count(why)
	c.b.in.release()
	c.b.close(true)
}

func (w *prewarm) closeLocked(is func(*prewarmed) bool) {
	for c := range w.all {
		if is(c) {
			w.drop(c, "closed")
		}
	}
}

func (w *prewarm) closeWhere(is func(*prewarmed) bool) {
	if w.size.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closeLocked(is)
}

// clear closes all, so that the server has room for others, or a database nobody in it.
func (w *prewarm) clear() { w.closeWhere(func(*prewarmed) bool { return true }) }

// cut closes what can be of use to epochs up to this one only.
func (w *prewarm) cut(epoch uint64) {
	w.closeWhere(func(*prewarmed) bool { return w.target.Epoch < epoch })
}

// sweep closes what was not taken in time, and what is so old that PostgreSQL might not let it in
// any more. runWatch calls it at least once a second.
func (w *prewarm) sweep() {
	now := bootNow()
	w.closeWhere(func(c *prewarmed) bool {
		return w.leaveAt != 0 && now >= w.leaveAt ||
			now-c.b.born >= int64(w.proxy.cfg.ReuseLifetime)
	})
}

// close closes all and takes nothing any more.
func (w *prewarm) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.closeLocked(func(*prewarmed) bool { return true })
}

// relay implements handler: nobody waits for the bytes.
func (c *prewarmed) relay(int64) {}

// read implements handler: it takes news of settings; anything else is the connection's end.
func (c *prewarmed) read() {
	c.book.mu.Lock()
	defer c.book.mu.Unlock()
	for turn := 0; !c.isOut; turn++ {
		if !wholeMessages(&c.b.in, c.message) || turn > loopTurns {
			c.book.drop(c, "stale")
			return
		}
		err := c.b.in.fillNow(c.b.conn)
		if errors.Is(err, errAgain) {
			return
		}
		if err != nil {
			c.book.drop(c, "stale")
		}
	}
}

func (c *prewarmed) message(typ byte, body []byte) bool {
	switch typ {
	case pgwire.SrvParameterStatus: // in_hot_standby among them, with the promotion
		name, value, err := pgwire.ParseParameterStatus(body)
		if err == nil {
			c.b.note(name, value)
		}
		return err == nil && len(c.b.params) <= c.b.proxy.cfg.ServerParametersMax
	case pgwire.SrvNotice:
		return !isFarewell(body)
	}
	return false
}

// prewarmSQL is checkSQL on a standby, where a role whose transactions are serializable by default
// could ask nothing (0A000), and how many connections there are left beside a tenth of all and
// those that are reserved: the target has clients of its own, or will.
const prewarmSQL = "BEGIN ISOLATION LEVEL READ COMMITTED; " + checkSQL + ", (SELECT " +
	"pg_catalog.current_setting('max_connections')::pg_catalog.int8" +
	" OPERATOR(pg_catalog.*) 9 OPERATOR(pg_catalog./) 10 OPERATOR(pg_catalog.-)" +
	" pg_catalog.current_setting('superuser_reserved_connections')::pg_catalog.int8" +
	" OPERATOR(pg_catalog.-) coalesce(" +
	"pg_catalog.current_setting('reserved_connections', true)::pg_catalog.int8, 0)" +
	" OPERATOR(pg_catalog.-)" +
	" pg_catalog.sum(pg_catalog.pg_stat_get_db_numbackends(oid))" +
	" FROM pg_catalog.pg_database); COMMIT"

// errTargetFull is a target that has no connections to spare.
var errTargetFull = errors.New("the target has few connections left")

// loginAhead logs in on a standby, and notes which start of its server that is.
func (b *backend) loginAhead(login []pgwire.Param, cred pgwire.Credentials,
	opts pgwire.LoginOptions,
) error {
	if err := b.authenticate(login, cred, opts); err != nil {
		return err
	}
	rows, err := pgwire.SimpleQuery(b.conn, b.reader, prewarmSQL)
	if err != nil {
		return fmt.Errorf("check target: %w", err)
	}
	if len(rows) != 1 || len(rows[0]) != 6 || string(rows[0][1]) != "t" {
		return fmt.Errorf("check target: it is no standby: %w", errWrongServer)
	}
	left := string(rows[0][5])
	if left == "0" || strings.HasPrefix(left, "-") {
		return errTargetFull
	}
	b.primary.Incarnation, b.unproved = string(rows[0][0]), true
	b.role, b.syncCommit = string(rows[0][3]), string(rows[0][4])
	if rows[0][2] == nil {
		return nil // it is asked for with the proof
	}
	return b.noteStart(rows[0][2])
}

// prove makes a connection that was made ahead show that it is one to the primary.
func (b *backend) prove() error {
	if !b.unproved {
		return nil
	}
	_, _, err := b.exchangeAll(nil, 0, b.note)
	return err
}

// readProof reads the answer to checkSQL, behind which other answers may come.
func (b *backend) readProof(report func(name, value string)) error {
	var rows [][][]byte
	told := 0
	for {
		typ, body, err := b.reader.ReadMessage()
		if err != nil {
			return fmt.Errorf("read from backend: %w", err)
		}
		switch typ {
		case pgwire.SrvDataRow:
			cols, err := pgwire.ParseDataRow(body)
			if err != nil || len(rows) > 0 {
				return errors.Join(err, errWrongServer)
			}
			rows = append(rows, pgwire.CloneRow(cols))
		case pgwire.SrvError:
			e, err := pgwire.ParseError(body)
			if err != nil {
				return err
			}
			return fmt.Errorf("check backend: %w", e)
		case pgwire.SrvParameterStatus:
			if err := b.countParam(&told, body); err != nil {
				return err
			}
			if name, value, err := pgwire.ParseParameterStatus(body); err == nil {
				report(name, value)
			}
		case pgwire.SrvReadyForQuery:
			if err := b.identify(rows); err != nil {
				return err
			}
			b.unproved = false
			return nil
		}
	}
}
