(define-module (gnu system shadow)
  #:use-module (guix records))

(define-record-type* <user-account> user-account make-user-account user-account?
  (name user-account-name)
  (group user-account-group)
  (system? user-account-system?)
  (comment user-account-comment)
  (home-directory user-account-home-directory)
  (create-home-directory? user-account-create-home-directory?)
  (shell user-account-shell))
(define-record-type* <user-group> user-group make-user-group user-group?
  (name user-group-name)
  (system? user-group-system?))
(export user-account user-account-name user-account-group user-group user-group-name)
