package proxy

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// sessionRulesMax bounds the lines of session_limits, and with them the values of a metric.
	sessionRulesMax = 100
	// holdLongest is the longest time that a line may give.
	holdLongest = 24 * time.Hour
	// journalLargest is the most of a journal that a line may give.
	journalLargest = 1<<31 - 1
)

// sessionRule is a line of session_limits: what sessions of some roles in some databases have in
// the place of the general limits. It is not changed once it is read (DESIGN.md I45).
type sessionRule struct {
	text             string
	line             int // from 1 on, as a value of a metric
	databases, users []hbaToken

	holdTimeout, holdNoticeAfter   time.Duration
	journalBytesMax                int
	hasTimeout, hasNotice, hasSize bool
}

// parseSessionRules reads the lines, and says everything that is wrong with them.
func parseSessionRules(lines []string) ([]sessionRule, error) {
	if len(lines) > sessionRulesMax {
		return nil, fmt.Errorf("proxy.session_limits: has more than %d lines", sessionRulesMax)
	}
	var rules []sessionRule
	var errs []error
	for i, line := range lines {
		fields, err := hbaFields(line)
		if err == nil && len(fields) == 0 {
			continue
		}
		r := sessionRule{text: strings.TrimSpace(line), line: i + 1}
		if err == nil {
			err = r.parse(fields)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("proxy.session_limits[%d]: %w", i, err))
			continue
		}
		rules = append(rules, r)
	}
	return rules, errors.Join(errs...)
}

func (r *sessionRule) parse(fields [][]hbaToken) error {
	if len(fields) < 3 {
		return errors.New("too few fields: database, user, and at least one limit such as " +
			"hold_timeout=10s")
	}
	r.databases, r.users = fields[0], fields[1]
	for _, list := range [][]hbaToken{r.databases, r.users} {
		for i := range list {
			if err := list[i].compile(); err != nil {
				return err
			}
		}
	}
	// Who is a member of what is known at the primary, and a limit counts while there is none.
	if slices.ContainsFunc(r.users, hbaToken.isGroup) ||
		slices.ContainsFunc(r.databases, hbaToken.isSameRole) {
		return errors.New("groups (+role, samerole) are not supported here: name the roles")
	}
	if slices.ContainsFunc(r.databases, func(t hbaToken) bool { return t.is("replication") }) {
		return errors.New("replication: such connections are not held")
	}
	for _, f := range fields[2:] {
		if len(f) > 1 {
			return fmt.Errorf("%q: a limit has one value", f[0].text+",...")
		}
		if err := r.limit(f[0].text); err != nil {
			return err
		}
	}
	return nil
}

// limit reads name=value.
func (r *sessionRule) limit(text string) (err error) {
	name, value, _ := strings.Cut(text, "=")
	var has *bool
	switch name {
	case "hold_timeout":
		has = &r.hasTimeout
		r.holdTimeout, err = limitTime(value)
	case "hold_notice_after":
		has = &r.hasNotice
		r.holdNoticeAfter, err = limitTime(value)
	case "journal_bytes_max":
		has = &r.hasSize
		r.journalBytesMax, err = strconv.Atoi(value)
		if err != nil || r.journalBytesMax < 1 || r.journalBytesMax > journalLargest {
			err = fmt.Errorf("must be 1 to %d", journalLargest)
		}
	default:
		return fmt.Errorf("%q is not one of hold_timeout=, hold_notice_after=, journal_bytes_max=",
			text)
	}
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", name, err)
	case *has:
		return fmt.Errorf("%s is there twice", name)
	}
	*has = true
	return nil
}

func limitTime(value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 || d > holdLongest {
		return 0, fmt.Errorf("%q must be 0s to %s", value, holdLongest)
	}
	return d, nil
}

// ruleOf is the first line that matches who a client says it is; nil is none. What it says is
// proved before it waits for anything that a limit is for.
func ruleOf(rules []sessionRule, who poolOwner) *sessionRule {
	c := hbaClient{user: who.user, database: who.database}
	for i := range rules {
		r := &rules[i]
		if slices.ContainsFunc(r.users, c.isUser) &&
			slices.ContainsFunc(r.databases, c.isDatabase) {
			return r
		}
	}
	return nil
}

// holdTimeout bounds how long a statement or the login of the session waits for a primary.
func (s *session) holdTimeout() time.Duration {
	if r := s.account.rule; r != nil && r.hasTimeout {
		return r.holdTimeout
	}
	return s.proxy.cfg.HoldTimeout
}

// holdNoticeAfter is when the session is told that it waits; 0 is never.
func (s *session) holdNoticeAfter() time.Duration {
	if r := s.account.rule; r != nil && r.hasNotice {
		return r.holdNoticeAfter
	}
	return s.proxy.cfg.HoldNoticeAfter
}

// journalBytesMax bounds the copy of the session's open unit of work.
func (s *session) journalBytesMax() int {
	if r := s.account.rule; r != nil && r.hasSize {
		return r.journalBytesMax
	}
	return s.proxy.cfg.JournalBytesMax
}

// countHoldOver counts that the time which a line gives was over before there was a primary.
func (s *session) countHoldOver() {
	if r := s.account.rule; r != nil && r.hasTimeout {
		s.proxy.metrics.ruleTimeouts.WithLabelValues(strconv.Itoa(r.line)).Inc()
	}
}
