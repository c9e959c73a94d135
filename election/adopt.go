package election

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// AdoptConfig is what an adoption needs beside the configuration of the agent that follows it.
type AdoptConfig struct {
	Agent AgentConfig
	// Members are all members of the group.
	Members []Member
	// SyncMode is what synchronous_standby_names will follow once the group has its lock.
	SyncMode string
	// SyncWait is how many standbys a commit waits for in the modes quorum and strict.
	SyncWait int
	// AdminRole is the superuser to log in as before Agent.Superuser works; empty takes that one.
	AdminRole string
	// AdminPassword is AdminRole's; empty relies on pg_hba.conf letting PostgreSQL's account in
	// by the socket (peer, trust).
	AdminPassword string
	// Restart allows the server to be restarted at the end; without it no setting that needs a
	// restart takes effect, and no server is ever stopped.
	Restart bool
	// ManagerURLs are where another manager's REST interface may be; nil is Patroni's default.
	ManagerURLs []string
}

// AdoptWhen says when a change of an adoption comes into force.
type AdoptWhen string

// The times of a change.
const (
	AdoptNow      AdoptWhen = "now"      // by adopt itself
	AdoptTakeover AdoptWhen = "takeover" // by serve, once the group's first lock is there
	AdoptRestart  AdoptWhen = "restart"  // at the server's next start: --restart, a switchover
)

// AdoptChange is one thing that an adoption changes.
type AdoptChange struct {
	When AdoptWhen `json:"when"`
	// Kind is what is changed: file, directory, setting, alter-system, role, schema, slot, hba,
	// restart.
	Kind string `json:"kind"`
	// Object is its name; From and To are what it was and will be, in words where it is no value.
	Object string `json:"object"`
	From   string `json:"from,omitempty"`
	To     string `json:"to,omitempty"`
}

// AdoptPlan is what an adoption found and what it would change; it is all that Apply does.
type AdoptPlan struct {
	Member   string `json:"member"`
	DataDir  string `json:"data_dir"`
	Role     string `json:"role"` // primary or standby
	SystemID string `json:"system_id"`
	// ServerVersion is server_version_num.
	ServerVersion int           `json:"server_version"`
	Pid           int           `json:"pid"`
	Incarnation   string        `json:"incarnation"`
	Upstream      string        `json:"upstream,omitempty"` // the member that a standby follows
	Changes       []AdoptChange `json:"changes"`
	// Limits are what will not work, or not as before, and until when.
	Limits []string `json:"limits,omitempty"`
	// Refusals are why nothing is done; with any of them Apply does nothing.
	Refusals []string `json:"refusals,omitempty"`

	steps []adoptStep
}

// IsDone tells that nothing is left to do now: only what comes with the take-over or a restart.
func (p *AdoptPlan) IsDone() bool { return len(p.steps) == 0 && len(p.Refusals) == 0 }

func (p *AdoptPlan) refuse(format string, args ...any) {
	p.Refusals = append(p.Refusals, fmt.Sprintf(format, args...))
}

func (p *AdoptPlan) limit(format string, args ...any) {
	p.Limits = append(p.Limits, fmt.Sprintf(format, args...))
}

// step adds what is done now, with every change that it makes; without one there is no step.
func (p *AdoptPlan) step(name string, changes []AdoptChange, do func(context.Context) error) {
	if len(changes) == 0 {
		return
	}
	p.Changes = append(p.Changes, changes...)
	p.steps = append(p.steps, adoptStep{name, do})
}

// later adds a change that is not made by Apply.
func (p *AdoptPlan) later(c AdoptChange) { p.Changes = append(p.Changes, c) }

// adoptStep is a part of an adoption; it may be repeated.
type adoptStep struct {
	name string
	do   func(context.Context) error
}

// ErrAdoptRefused is an adoption that would not be safe; the text has every reason.
var ErrAdoptRefused = errors.New("not adopted")

// Adoption takes a running server over into a Holdfast cluster: it makes the server's directory
// and catalogue what an agent expects, without a restart. It is an agent that has not started: no
// goroutine runs. Not safe for concurrent use.
type Adoption struct {
	cfg AdoptConfig
	a   *PostgresAgent
	srv adoptServer
}

// adoptSource is the state of a group that has none yet.
type adoptSource struct{ state State }

func (s *adoptSource) State() (*State, <-chan struct{}) { return &s.state, nil }

// adoptQueryMin is the least bound of a login and of a query: the agent's is short, since a slow
// server is a problem of its own, but a busy host is no reason to end an operator's command.
const adoptQueryMin = 15 * time.Second

// NewAdoption checks the configuration and reads the secrets; it touches neither the server nor
// its data.
func NewAdoption(cfg AdoptConfig, log *zap.Logger) (*Adoption, error) {
	cfg.Agent.QueryTimeout = max(cfg.Agent.QueryTimeout, adoptQueryMin)
	src := &adoptSource{State{V: Version, Cluster: cfg.Agent.Cluster, Members: cfg.Members}}
	a, err := NewPostgresAgent(cfg.Agent, AgentDeps{Source: src, Log: log})
	if err != nil {
		return nil, fmt.Errorf("adopt: %w", err)
	}
	if !slices.ContainsFunc(cfg.Members, func(m Member) bool { return m.Name == cfg.Agent.Name }) {
		return nil, fmt.Errorf("adopt: %q is no member of the group", cfg.Agent.Name)
	}
	return &Adoption{cfg: cfg, a: a}, nil
}

// Close ends the connection.
func (d *Adoption) Close() { d.a.closeConn() }

// Plan looks at the server and says what would be changed. It changes nothing: its session is
// read-only. An error means that too little could be seen to say anything.
func (d *Adoption) Plan(ctx context.Context) (*AdoptPlan, error) {
	p := &AdoptPlan{Member: d.a.cfg.Name, DataDir: d.a.cfg.DataDir}
	if err := pgMayLook(d.a.account); err != nil {
		return nil, fmt.Errorf("adopt: %w", err)
	}
	if !d.checkDir(p) {
		return p, nil
	}
	if err := d.login(ctx); err != nil {
		return nil, fmt.Errorf("adopt: %w", err)
	}
	srv, err := d.readServer(ctx)
	if err != nil {
		return nil, fmt.Errorf("adopt: look at the server: %w", err)
	}
	d.srv = srv
	p.Role, p.SystemID, p.ServerVersion = srv.role(), srv.systemID, srv.version
	p.Incarnation, p.Pid = srv.incarnation, srv.pid
	d.checkServer(ctx, p)
	d.checkManagers(ctx, p)
	d.checkMembers(ctx, p)
	if len(p.Refusals) > 0 {
		return p, nil
	}
	if err := d.awaitRoles(ctx, p); err != nil {
		return nil, fmt.Errorf("adopt: %w", err)
	}
	if err := d.planChanges(ctx, p); err != nil {
		return nil, fmt.Errorf("adopt: %w", err)
	}
	return p, nil
}

// Apply does what the plan lists and nothing else. It looks again first: if the server is not what
// the plan was made for, nothing is done. Each step may be repeated, so after an error a new plan
// has what is left.
func (d *Adoption) Apply(ctx context.Context, shown *AdoptPlan) error {
	p, err := d.Plan(ctx)
	if err != nil {
		return err
	}
	if len(p.Refusals) > 0 {
		return fmt.Errorf("%w: %s", ErrAdoptRefused, strings.Join(p.Refusals, "; "))
	}
	if p.Incarnation != shown.Incarnation || p.Role != shown.Role ||
		!slices.Equal(p.Changes, shown.Changes) {
		return fmt.Errorf("%w: the server has changed since the plan was made: look at a new one",
			ErrAdoptRefused)
	}
	if len(p.steps) == 0 {
		return nil
	}
	if !d.srv.inRecovery {
		if _, err := d.a.exec(ctx, "SET default_transaction_read_only = off"); err != nil {
			return fmt.Errorf("adopt: %w", err)
		}
	}
	for _, s := range p.steps {
		d.a.log.Info("adopting", zap.String("step", s.name))
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("adopt: %s: %w (run it again once that is put right: what is done "+
				"is not done twice)", s.name, err)
		}
	}
	return nil
}
