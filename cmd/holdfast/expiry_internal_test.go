package main

import (
	"context"
	"crypto/x509"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

const day = 24 * time.Hour

// ofYears is a certificate that was made for five of them.
func ofYears(name string, ends time.Time) CertificateStatus {
	return CertificateStatus{Certificate: name, Ends: ends, begins: ends.Add(-5 * 365 * day)}
}

// TestExpiryOfShortLives: what is made for 90 days, and replaced when 30 are left, is no problem
// for half of its life.
func TestExpiryOfShortLives(t *testing.T) {
	now := time.Now()
	for left, isProblem := range map[time.Duration]bool{
		89 * day: false, 30 * day: false, 23 * day: false, 22 * day: true, -day: true,
	} {
		c := CertificateStatus{Certificate: certClients, Ends: now.Add(left)}
		c.begins = c.Ends.Add(-90 * day)
		if got := expiryProblems([]CertificateStatus{c}, now); len(got) > 0 != isProblem {
			t.Errorf("%s left: %q", left, got)
		}
	}
}

// TestExpiryProblems: a certificate is a problem from 60 days before its end, with what to do.
func TestExpiryProblems(t *testing.T) {
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		left time.Duration
		want string
	}{
		{61 * day, ""},
		{60*day + time.Second, ""},
		{60 * day, "ends on 2030-03-02, in 60 days"},
		{36 * time.Hour, "ends on 2030-01-03, in 1 days"},
		{time.Second, "ends on 2030-01-01, in 0 days"},
		{0, "has ended on 2030-01-01"},
		{-400 * day, "has ended on 2028-11-27"},
	} {
		for _, what := range []string{certNode, certCA, certClients} {
			got := expiryProblems([]CertificateStatus{ofYears(what, now.Add(tt.left))}, now)
			if tt.want == "" && len(got) == 0 {
				continue
			}
			if len(got) != 1 || !strings.Contains(got[0], tt.want) || tt.want == "" ||
				!strings.HasPrefix(got[0], expiryWords[what][0]) {
				t.Errorf("%s, %v left: %q, want %q", what, tt.left, got, tt.want)
			}
		}
	}
}

// TestExpiryOfChains: while a CA is replaced the one that lasts longer counts.
func TestExpiryOfChains(t *testing.T) {
	now := time.Now()
	leaf := &x509.Certificate{NotAfter: now.Add(30 * day)}
	chain := func(d time.Duration) []*x509.Certificate {
		return []*x509.Certificate{leaf, {NotAfter: now.Add(d)}}
	}
	want := []CertificateStatus{{Certificate: certNode, Ends: leaf.NotAfter},
		{Certificate: certCA, Ends: now.Add(90 * day)}}
	got := groupCertificates([][]*x509.Certificate{chain(10 * day), chain(90 * day), chain(20 * day)})
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := groupCertificates(nil); got != nil {
		t.Errorf("without a chain: %v", got)
	}
}

// TestExpiryIsLogged: once at the start and once a day, and no more once the certificate was
// replaced.
func TestExpiryIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		ctx, cancel := context.WithCancel(t.Context())
		var ends atomic.Pointer[time.Time]
		until := func(d time.Duration) { end := time.Now().Add(d); ends.Store(&end) }
		until(61*day + time.Hour)
		done := make(chan struct{})
		go func() {
			runExpiry(ctx, func() []CertificateStatus {
				return []CertificateStatus{ofYears(certClients, *ends.Load())}
			}, zap.New(core))
			close(done)
		}()
		warned := func(after time.Duration, want int) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if n := logs.Len(); n != want {
				t.Errorf("%d warnings, want %d", n, want)
			}
		}
		warned(time.Minute, 0)
		warned(day, 0)
		warned(day, 1)
		warned(day, 2)
		until(365 * day)
		warned(3*day, 2)
		cancel()
		<-done
		core2, logs2 := observer.New(zap.WarnLevel)
		ended := []CertificateStatus{ofYears(certCA, time.Now().Add(-day))}
		runExpiry(ctx, func() []CertificateStatus { return ended }, zap.New(core2))
		if logs2.Len() != 1 {
			t.Errorf("%d warnings at the start, want 1", logs2.Len())
		}
	})
}

// TestExpiryOfANode: status and metrics have the ends of what init made.
func TestExpiryOfANode(t *testing.T) {
	n, _ := testNode(t)
	st, _ := n.localStatus()
	year := func(i int) int { return int(time.Until(st.Certificates[i].Ends).Hours() / 24 / 364) }
	if len(st.Certificates) != 2 || year(0) != 5 || year(1) != 10 {
		t.Fatalf("certificates: %v", st.Certificates)
	}
	got := gathered(t, n.registry)
	for i, what := range []string{certNode, certCA} {
		name := "holdfast_certificate_expires_timestamp_seconds certificate=" + what
		if got[name] != float64(st.Certificates[i].Ends.Unix()) {
			t.Errorf("%s is %v", name, got[name])
		}
	}
	soon := Status{Certificates: []CertificateStatus{ofYears(certClients, time.Unix(1e9, 0))}}
	reg := prometheus.NewRegistry()
	reg.MustRegister(groupMetrics{look: func() (Status, bool) { return soon, false }})
	const name = "holdfast_certificate_expires_timestamp_seconds certificate=clients"
	if v := gathered(t, reg)[name]; v != 1e9 {
		t.Errorf("the certificate for clients ends at %v", v)
	}
}
