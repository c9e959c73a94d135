package election

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// CommandKind is what a log entry does.
type CommandKind string

// The commands. Each is idempotent: it names what it expects to find.
const (
	CommandRegister   CommandKind = "register"
	CommandBegin      CommandKind = "begin"
	CommandTarget     CommandKind = "target"
	CommandCommitLock CommandKind = "commit-lock"
	CommandSync       CommandKind = "sync"
	// CommandMaintenance begins or ends maintenance.
	CommandMaintenance CommandKind = "maintenance"
	CommandMembers     CommandKind = "members"
	CommandVoters      CommandKind = "voters"
	// CommandAnnounce tells proxies of a switchover before it begins.
	CommandAnnounce CommandKind = "announce"
)

// Command is one entry of the Raft log. Which field is set depends on Kind.
type Command struct {
	V        int              `json:"v"`
	Kind     CommandKind      `json:"kind"`
	Register *RegisterMembers `json:"register,omitempty"`
	Begin    *BeginIntent     `json:"begin,omitempty"`
	Target   *SetTarget       `json:"target,omitempty"`
	Commit   *CommitLock      `json:"commit,omitempty"`
	Sync     *SetSync         `json:"sync,omitempty"`

	Maintenance *SetMaintenance `json:"maintenance,omitempty"`
	Members     *ChangeMembers  `json:"members,omitempty"`
	Voters      *ChangeVoters   `json:"voters,omitempty"`
	Announce    *Announcement   `json:"announce,omitempty"`
}

// RegisterMembers names the cluster and its members.
type RegisterMembers struct {
	Cluster string   `json:"cluster"`
	Members []Member `json:"members"`
}

// BeginIntent announces a change of the lock and takes a fresh epoch for it.
type BeginIntent struct {
	// Request is random; a repeated command with the same one takes no second epoch.
	Request string     `json:"request"`
	Kind    IntentKind `json:"kind"`
	From    string     `json:"from,omitempty"`
	// FromEpoch is the epoch of the lock that the sender saw; 0 if there was none.
	FromEpoch uint64 `json:"from_epoch,omitempty"`
	// Replaces is the epoch of the intent that the sender saw; 0 if there was none.
	Replaces uint64 `json:"replaces,omitempty"`
	To       string `json:"to,omitempty"`
	Cause    string `json:"cause"`
	// Evidence is what the decision rested on, a line for each node.
	Evidence []string `json:"evidence,omitempty"`
	// StopsHolder, Only, AcceptLoss and Auto are the intent's.
	StopsHolder bool   `json:"planned,omitempty"`
	Only        string `json:"only,omitempty"`
	AcceptLoss  bool   `json:"accept_loss,omitempty"`
	// Slots are the old primary's logical slots.
	Slots []LogicalSlot `json:"slots,omitempty"`
	Auto  bool          `json:"auto,omitempty"`
}

// SetTarget makes the chosen candidate durable before it is ordered to promote.
type SetTarget struct {
	Epoch uint64 `json:"epoch"`
	To    string `json:"to"`
}

// CommitLock enters the new lock; it is void if its intent is no longer the current one.
type CommitLock struct {
	Lock     Lock             `json:"lock"`
	SystemID string           `json:"system_id,omitempty"`
	PhasesMS map[string]int64 `json:"phases_ms,omitempty"`
	At       time.Time        `json:"at"`
	// Sync is the rule on which a new holder was promoted.
	Sync *SyncRule `json:"sync,omitempty"`
	// Slots tell of logical slots that were lost or went on behind.
	Slots []string `json:"slots,omitempty"`
}

// Result is the answer to a command.
type Result struct {
	V int `json:"v"`
	// Epoch is the epoch of the intent or lock that the command made or found.
	Epoch uint64 `json:"epoch,omitempty"`
	// Refused says why the command changed nothing; empty if it did, or had done so before.
	Refused string `json:"refused,omitempty"`
}

// Err is the refusal as an error that wraps ErrConflict.
func (r Result) Err() error {
	if r.Refused == "" {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrConflict, r.Refused)
}

// ErrConflict is a command that found another state than it expected.
var ErrConflict = errors.New("state has changed")

// commandVersion is the oldest Version whose releases know a command. An entry carries it, so that
// a newer release leads older ones as long as it does nothing that they do not know; 0: unknown.
func commandVersion(k CommandKind) int {
	switch k {
	case CommandRegister, CommandBegin, CommandTarget, CommandCommitLock, CommandMaintenance,
		CommandSync, CommandMembers, CommandVoters, CommandAnnounce:
		return 1
	}
	return 0
}

// errNewerEntry is a log entry that this release does not understand. Nothing after it may be
// applied here: what it did is unknown.
var errNewerEntry = errors.New("a newer release wrote an entry of the Raft log; upgrade this node")

// encodeCommand writes a log entry. A command that this release does not know is refused: once in
// the log it would stop the state of every node.
func encodeCommand(c Command) ([]byte, error) {
	c.V = commandVersion(c.Kind)
	if c.V == 0 {
		return nil, fmt.Errorf("command %q is not known here; upgrade this node", c.Kind)
	}
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode command: %w", err)
	}
	return b, nil
}

// decodeCommand reads a log entry. An entry of a newer release is an error and not a guess.
func decodeCommand(b []byte) (Command, error) {
	var c Command
	if err := json.Unmarshal(b, &c); err != nil {
		return Command{}, fmt.Errorf("decode command: %w", err)
	}
	if c.V > Version || commandVersion(c.Kind) == 0 {
		return Command{}, fmt.Errorf("decode command %q of version %d, this node knows %d: %w",
			c.Kind, c.V, Version, errNewerEntry)
	}
	return c, nil
}
