//! What happens when nothing comes: RTO (RFC 6298), persist, keep-alive, delayed ACKs, TIME-WAIT.

use super::block::{
    ACK_NOW, FORCE, OFF, ORPHAN, PASSIVE, PERSIST, PROBE_DUE, RTT_TIMED, Recovery, SYN_DUE, State,
};
use super::{Engine, Error, Link};

impl Engine {
    /// When [`Engine::tick`] is to be called at the latest. It may turn out that nothing was due.
    pub fn deadline(&self) -> Option<u64> {
        self.timers.first()
    }

    /// Does what is due at `now`, and sends what that asks for.
    pub fn tick(&mut self, now: u64, link: &mut impl Link) {
        while let Some(slot) = self.timers.take_due(now) {
            let generation = self.blocks[slot].generation;
            self.expired(now, slot);
            let block = &self.blocks[slot];
            if block.generation == generation && block.state != State::CLOSED {
                self.rearm(slot);
            }
        }
        self.flush(now, link);
    }

    fn expired(&mut self, now: u64, slot: u32) {
        let block = &mut self.blocks[slot];
        if block.life_at <= now {
            return self.end(slot, None);
        }
        if block.ack_at <= now {
            block.ack_at = OFF;
            block.set(ACK_NOW);
            self.queue(slot);
        }
        if self.blocks[slot].keep_at <= now && self.keep_alive(now, slot) {
            return;
        }
        if self.blocks[slot].rto_at > now {
            return;
        }
        match self.blocks[slot].state {
            State::SYN_SENT | State::SYN_RECEIVED => self.repeat_syn(now, slot),
            _ => self.timed_out(now, slot),
        }
    }

    fn repeat_syn(&mut self, now: u64, slot: u32) {
        let config = &self.config;
        let block = &mut self.blocks[slot];
        let most = if block.has(PASSIVE) {
            config.syn_ack_retries
        } else {
            config.syn_retries
        };
        let waited = now.saturating_sub(block.progress_at);
        if block.backoff >= most || (block.user_timeout > 0 && waited >= block.user_timeout) {
            let error = Error::from_code(block.soft_error).unwrap_or(Error::TimedOut);
            return self.end(slot, Some(error));
        }
        block.backoff += 1;
        block.rto_at = now.saturating_add(block.backed_off(config.max_rto));
        block.set(SYN_DUE);
        self.queue(slot);
    }

    /// Whether it ended the connection.
    fn keep_alive(&mut self, now: u64, slot: u32) -> bool {
        let block = &mut self.blocks[slot];
        let idle_until = block.heard_at.saturating_add(block.keep_idle);
        if idle_until > now || block.flight() > 0 {
            // Data on its way is as good as a probe.
            block.keep_at = idle_until.max(now.saturating_add(block.keep_interval));
            return false;
        }
        if u32::from(block.probes) >= block.keep_count {
            let error = Error::from_code(block.soft_error).unwrap_or(Error::TimedOut);
            self.break_off(slot, Some(error));
            return true;
        }
        block.probes = block.probes.saturating_add(1);
        block.keep_at = now.saturating_add(block.keep_interval);
        block.set(PROBE_DUE);
        self.queue(slot);
        false
    }

    /// Retransmission or persist timer.
    fn timed_out(&mut self, now: u64, slot: u32) {
        let config = &self.config;
        let block = &mut self.blocks[slot];
        if block.has(PERSIST) && !block.has(ORPHAN) && block.heard_at >= block.sent_at {
            // The last probe was answered: the peer lives.
            block.progress_at = now;
        }
        let limit = match block.user_timeout {
            _ if block.has(ORPHAN) => config.orphan_give_up,
            0 => config.give_up,
            own => own,
        };
        if block.backoff > 0 && now.saturating_sub(block.progress_at) >= limit {
            let error = Error::from_code(block.soft_error).unwrap_or(Error::TimedOut);
            return self.break_off(slot, Some(error));
        }
        if block.has(PERSIST) {
            block.set(if block.snd_wnd > 0 { FORCE } else { PROBE_DUE });
            block.sent_at = now;
        } else if block.flight() == 0 {
            block.rto_at = OFF;
            return;
        } else {
            let flight = block.flight();
            let mss = block.smss();
            if block.recovery != Recovery::LOSS {
                block.window.lost(config.congestion, flight, mss);
            }
            // A receiver may drop what it has SACKed (RFC 2018, section 8): at the second time-out,
            // or when it SACKs what it says it lacks, that counts no more.
            if block.backoff > 0 || block.sacked.holding(block.snd_una).is_some() {
                block.sacked.clear();
            }
            block.recovery = Recovery::LOSS;
            block.recover = block.snd_nxt;
            block.high_rxt = block.snd_una;
            block.lost_edge = block.snd_nxt;
            block.rxt_mark = block.snd_nxt;
            block.window.cwnd = mss;
            block.dup_acks = 0;
            block.clear(RTT_TIMED);
            self.stats.timeouts += 1;
        }
        block.backoff = block.backoff.saturating_add(1);
        block.rto_at = now.saturating_add(block.backed_off(config.max_rto));
        if block.user_timeout > 0 && !block.has(ORPHAN) {
            let end = block.progress_at.saturating_add(block.user_timeout);
            block.rto_at = block.rto_at.min(end.max(now + 1));
        }
        self.queue(slot);
    }
}
