package proxy

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"holdfast/pgwire"
)

// errNotTheSame tells that a table did not come out as it was.
var errNotTheSame = errors.New("a temporary table did not come out as it was")

// unpack makes the session's temporary tables again, in one transaction, and compares them with
// what they were: their rows by digest, all else by what the catalogue says. If anything is
// different, or fails, none of them is there.
func (s *session) unpack(b *backend) error {
	s.mu.Lock()
	c := s.carry
	s.mu.Unlock()
	if !c.packed() || len(c.tables) == 0 {
		return nil
	}
	u := unpacker{s: s, b: b, c: c}
	err := u.run()
	var pe *pgwire.Error
	switch {
	case err == nil:
		s.proxy.metrics.carries.WithLabelValues("restored").Inc()
		return nil
	case errors.Is(err, errNotTheSame), errors.Is(err, errNoCopy):
		err = notCarried(errUnmovable(reasonTemp.String() + " (" + err.Error() + ")"))
	case errors.As(err, &pe) && !isServerAway(err):
		err = notCarried(fatal(restoreError(pe)))
	default:
		return err // another backend may do
	}
	s.proxy.metrics.carries.WithLabelValues("failed").Inc()
	return err
}

// unpacker makes temporary tables on a backend that is not attached.
type unpacker struct {
	s  *session
	b  *backend
	c  *carry
	as string
}

func (u *unpacker) run() error {
	if err := u.ask("BEGIN READ WRITE; " + carrySettingsSQL); err != nil {
		return err
	}
	for i := range u.c.tables {
		if err := u.make(&u.c.tables[i]); err != nil {
			return err
		}
	}
	if err := u.compare(); err != nil {
		return err
	}
	return u.ask("COMMIT")
}

// ask runs statements whose rows are of no interest.
func (u *unpacker) ask(sql string) error {
	if sql == "" {
		return nil
	}
	u.extend()
	_, err := u.b.question(sql)
	return err
}

// extend gives the server time for one more step.
func (u *unpacker) extend() {
	_ = u.b.conn.SetDeadline(time.Now().Add(u.s.proxy.cfg.DialTimeout))
}

func (u *unpacker) become(owner string) error {
	if u.as == owner {
		return nil
	}
	u.as = owner
	return u.ask("SET LOCAL ROLE " + owner)
}

// make makes a table.
func (u *unpacker) make(t *carriedTable) error {
	if err := u.become(t.owner); err != nil {
		return err
	}
	if err := u.ask(t.sql()); err != nil {
		return err
	}
	if t.sum.tag != noRows {
		u.extend()
		err := u.b.copyIn("COPY "+t.name+" FROM STDIN (FORMAT binary)", t.rows)
		if err != nil {
			return err
		}
	}
	if err := u.ask(t.finish); err != nil {
		return err
	}
	return u.ask(t.rest)
}

// compare asks the server what it has now.
func (u *unpacker) compare() error {
	u.extend()
	rows, err := u.b.question(tablesSQL)
	if err != nil {
		return err
	}
	if len(rows) != len(u.c.tables) {
		return errNotTheSame
	}
	for i, row := range rows {
		t := &u.c.tables[i]
		if text(row, 1) != t.name || sha256.Sum256([]byte(text(row, 9))) != t.describes {
			return fmt.Errorf("%w: %s", errNotTheSame, t.name)
		}
		if err := u.become(t.owner); err != nil {
			return err
		}
		u.extend()
		sum, err := u.b.copyOut(copySQL(t.name), discardRows)
		if err != nil {
			return err
		}
		made := rowSum{}
		if t.generated != "" {
			if made, err = u.b.copyOut(generatedSQL(t), discardRows); err != nil {
				return err
			}
		}
		if sum != t.sum || made != t.made {
			return fmt.Errorf("%w: rows of %s", errNotTheSame, t.name)
		}
	}
	return nil
}
