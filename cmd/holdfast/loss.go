package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"holdfast/pgwire"
)

// tellLoss says what may be lost with a promotion, as far as the nodes know.
func tellLoss(ctx context.Context, out io.Writer, url, to string) {
	var st Status
	if err := callHTTP(ctx, http.MethodGet, url+"/v1/status", nil, &st); err != nil {
		fmt.Fprintf(out, "warning: what may be lost is not known: %v\n", err)
		return
	}
	fmt.Fprintf(out, "warning: commits that are not on %s are lost%s\n", to, st.lossText(to))
}

// lossText compares a member's position with the furthest that is known, a lost member's last one
// too: the primary that nobody hears any more is the one that had most.
func (s *Status) lossText(to string) string {
	var mine, best pgwire.LSN
	whose, when := "", ""
	var unknown []string
	for i := range s.Members {
		m := &s.Members[i]
		if m.Postgres == "" {
			continue
		}
		lsn, age := m.knownLSN()
		switch {
		case lsn == 0:
			unknown = append(unknown, m.Name)
		case m.Name == to:
			mine = lsn
		case lsn > best:
			best, whose, when = lsn, m.Name, age
		}
	}
	text := ""
	switch {
	case mine == 0:
		text = "; its own position is not known"
	case best > mine:
		text = fmt.Sprintf(": it is at %s, %s was at %s%s, %d bytes further", mine, whose, best, when,
			best-mine)
	default:
		text = fmt.Sprintf("; no node is known to have WAL behind its position %s", mine)
	}
	if len(unknown) > 0 && mine != 0 {
		text += "; nothing is known of " + strings.Join(unknown, ", ")
	}
	return text
}

// knownLSN is the newest position that the leader has heard of, and since when in words if the
// member is lost; 0 if it has heard of none.
func (m *MemberStatus) knownLSN() (lsn pgwire.LSN, age string) {
	text := m.LSN
	if m.LastLSN != "" {
		text, age = m.LastLSN, fmt.Sprintf(" %d s ago", m.AgeMS/1000)
	}
	lsn, err := pgwire.ParseLSN(text)
	if err != nil {
		return 0, ""
	}
	return lsn, age
}
