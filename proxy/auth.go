package proxy

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// authenticate checks the client with SCRAM-SHA-256 against the secret that PostgreSQL itself
// has, and keeps the ClientKey of the proof: with it the proxy can log in as this user.
func (d *door) authenticate(ctx context.Context, user string) (pgwire.Credentials, error) {
	p := d.proxy
	var cred pgwire.Credentials
	stored, ok, err := p.secrets.UserSecret(ctx, user)
	if err != nil {
		p.log.Info("secret could not be looked up", zap.Error(err))
		return cred, errNoPrimaryLogin()
	}
	var secret pgwire.ScramSecret
	if ok {
		secret, err = pgwire.ParseScramSecret(stored)
		if err != nil {
			p.log.Warn("role has no scram-sha-256 secret", zap.String("user", user))
			ok = false
		}
	}
	sc := pgwire.NewScramServer(user, secret, ok)
	cred, err = d.scram(sc)
	if err != nil {
		var pe *pgwire.Error
		if errors.As(err, &pe) {
			return cred, fatal(pe)
		}
		if errors.Is(err, errClientGone) {
			return cred, err
		}
		p.log.Debug("authentication failed", zap.String("user", user), zap.Error(err))
		return cred, fatal(pgwire.NewError(pgwire.CodeInvalidPassword,
			fmt.Sprintf("password authentication failed for user %q", user)))
	}
	cred.ServerKey = secret.ServerKey
	return cred, nil
}

func (d *door) scram(sc *pgwire.ScramServer) (pgwire.Credentials, error) {
	var cred pgwire.Credentials
	sc.Bind(d.binding)
	out := pgwire.AppendAuthSASL(nil, sc.Mechanisms()...)
	if _, err := d.conn.Write(out); err != nil {
		return cred, errClientGone
	}
	body, err := readPassword(d.r)
	if err != nil {
		return cred, err
	}
	mech, first, err := pgwire.ParseSASLInitial(body)
	if err != nil {
		return cred, err
	}
	if err := sc.Choose(mech); err != nil {
		return cred, err
	}
	reply, err := sc.First(first)
	if err != nil {
		return cred, err
	}
	if _, err := d.conn.Write(pgwire.AppendAuthSASLContinue(nil, reply)); err != nil {
		return cred, errClientGone
	}
	if body, err = readPassword(d.r); err != nil {
		return cred, err
	}
	reply, key, err := sc.Final(body)
	if err != nil {
		return cred, err
	}
	cred.ClientKey = key
	if _, err := d.conn.Write(pgwire.AppendAuthSASLFinal(nil, reply)); err != nil {
		return cred, errClientGone
	}
	return cred, nil
}

func readPassword(r *pgwire.Reader) ([]byte, error) {
	typ, body, err := r.ReadMessage()
	if err != nil {
		var pe *pgwire.Error
		if errors.As(err, &pe) {
			return nil, fatal(pe)
		}
		return nil, errClientGone
	}
	if typ != pgwire.CliPassword {
		return nil, fatal(pgwire.NewError(pgwire.CodeProtocolViolation,
			fmt.Sprintf("expected a password message, got message type %q", typ)))
	}
	return body, nil
}
